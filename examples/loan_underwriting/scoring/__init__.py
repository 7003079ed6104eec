"""A monotone scorecard trained on open credit data; no language model ever scores."""
