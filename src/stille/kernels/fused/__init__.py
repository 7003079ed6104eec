"""Fused operations of a dense decoder layer: norms, gates, and projections of a few rows."""
