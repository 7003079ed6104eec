"""Evaluations: what a model can still do under a setting, held against the same model without it."""
