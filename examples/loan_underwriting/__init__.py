"""The loan desk: documents, the services it asks, extraction, scoring and the rules, all of it deterministic."""
