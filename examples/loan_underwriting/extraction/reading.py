"""Documents to upright pages of spans: the PDF's own text where there is any, else what its picture shows."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pdfplumber
import pypdfium2

from examples.loan_underwriting.extraction.types import Page, Span

DPI = 150
LARGEST_TURN = 3.0
GAP = 3.0
"""Points between two pieces of a line that are not the same span."""
MOST_POINTS = 60_000
"""Of ink, by which a page's turn is found."""
_lock = threading.Lock()


def read(path: Path) -> list[Page]:
    """A document's pages. A page without any text of its own is taken for a scan.

    Raises:
        ValueError: it is not a PDF that can be opened.
    """
    try:
        with pdfplumber.open(path) as document:
            pages = [_text_page(number, page) for number, page in enumerate(document.pages)]
    except Exception as error:  # pdfminer has many of its own
        raise ValueError(f"{path} is not a readable PDF ({error}); ask for the document again") from error
    if all(page.spans for page in pages):
        return pages
    with _lock:  # pdfium is not thread-safe
        document = pypdfium2.PdfDocument(path)
        images = {
            page.number: document[page.number].render(scale=DPI / 72, grayscale=True).to_numpy().squeeze()  # pyright: ignore[reportArgumentType]
            for page in pages
            if not page.spans
        }
        document.close()
    return [_scanned_page(page, images[page.number]) if page.number in images else page for page in pages]


def _text_page(number: int, page: Any) -> Page:
    words = page.extract_words(keep_blank_chars=True, x_tolerance=GAP, y_tolerance=2)
    spans = [
        Span(" ".join(word["text"].split()), (word["x0"], word["top"], word["x1"], word["bottom"]))
        for word in words
        if word["text"].strip()
    ]
    return Page(number, float(page.width), float(page.height), tuple(spans))


def skew(image: np.ndarray) -> float:
    """Degrees (anticlockwise) by which the lines of a grey picture are turned: where their projection is sharpest."""
    ink = cv2.threshold(image, 0, 255, cv2.THRESH_BINARY_INV + cv2.THRESH_OTSU)[1]
    rows, columns = np.nonzero(ink)
    if len(rows) > MOST_POINTS:
        chosen = np.random.default_rng(0).choice(len(rows), MOST_POINTS, replace=False)
        rows, columns = rows[chosen], columns[chosen]

    def sharpness(degrees: float, height: float) -> float:
        """Of the projection onto lines of so many pixels. Points are turned, not the picture, which would blur it."""
        turn = np.deg2rad(degrees)
        lines = np.round((rows * np.cos(turn) + columns * np.sin(turn)) / height).astype(int)
        profile = np.convolve(np.bincount(lines - lines.min()), (0.25, 0.5, 0.25))
        return float(np.square(np.diff(profile)).sum())

    if len(rows) == 0:
        return 0.0
    best = max(np.arange(-LARGEST_TURN, LARGEST_TURN + 0.01, 0.2), key=lambda d: sharpness(d, 2.0))
    return float(max(np.arange(best - 0.2, best + 0.21, 0.05), key=lambda d: sharpness(d, 1.0)))


@functools.cache
def _recogniser() -> Any:
    """PP-OCR's detection and recognition, from the models within the package; one thread, documents go in parallel."""
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "Global.use_cls": False,  # pages stand upright
            "Global.log_level": "error",
            "Global.max_side_len": 4000,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def _scanned_page(page: Page, image: np.ndarray) -> Page:
    degrees = skew(image)
    high, wide = image.shape
    matrix = cv2.getRotationMatrix2D((wide / 2, high / 2), -degrees, 1.0)
    paper = float(np.median(image))
    image = cv2.warpAffine(image, matrix, (wide, high), flags=cv2.INTER_CUBIC, borderValue=(paper,))
    with _lock:
        result = _recogniser()(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
    spans = []
    if result.boxes is not None:
        for corners, text, score in zip(result.boxes, result.txts, result.scores, strict=True):
            (left, top), (right, bottom) = corners.min(axis=0) * 72 / DPI, corners.max(axis=0) * 72 / DPI
            if text.strip():
                box = (float(left), float(top), float(right), float(bottom))
                spans.append(Span(" ".join(text.split()), box, float(score)))
    return Page(page.number, page.width, page.height, tuple(joined(spans)), True, degrees)


def joined(spans: list[Span]) -> list[Span]:
    """Pieces of a line that touch as one: recognition may cut a phrase in two."""
    result: list[Span] = []
    for span in sorted(spans, key=lambda span: span.box[0]):
        for i, other in enumerate(result):
            apart = span.box[0] - other.box[2]
            level = abs(span.middle - other.middle) < 0.4 * min(span.height, other.height)
            if level and apart < GAP and span.box[2] > other.box[2]:
                (left, top, _, bottom), (_, top2, right, bottom2) = other.box, span.box
                box = (left, min(top, top2), right, max(bottom, bottom2))
                result[i] = Span(f"{other.text} {span.text}", box, min(span.confidence, other.confidence))
                break
        else:
            result.append(span)
    return result
