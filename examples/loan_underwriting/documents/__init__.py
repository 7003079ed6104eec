"""Seeded loan applications as PDFs, text or scanned, with the exact truth of every field."""
