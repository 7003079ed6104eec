"""Fields of loan documents with where they were found, and checks of what they say."""

from examples.loan_underwriting.extraction.extractor import Extraction, Extractor, GeometryExtractor
from examples.loan_underwriting.extraction.types import Found

__all__ = ["Extraction", "Extractor", "Found", "GeometryExtractor"]
