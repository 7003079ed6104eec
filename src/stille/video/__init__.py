"""Live understanding of camera streams: sources, perception with identities, rules, events, sinks."""
