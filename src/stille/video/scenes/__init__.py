"""Synthetic warehouses: layouts, what happens in them, and pictures with exact truth."""
