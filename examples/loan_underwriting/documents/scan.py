"""What a cheap scanner does to a page: a slight turn, blur, grey paper, noise, JPEG; only the picture is left."""

from __future__ import annotations

import io
import math
import random
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pypdfium2
from PIL import Image
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen import canvas

from examples.loan_underwriting.documents.sheet import Box, Field

DPI = 150
MAX_DEGREES = 2.0


def turned(box: Box, degrees: float, size: tuple[float, float]) -> Box:
    """The upright box around one that was turned with its page about the middle."""
    turn = math.radians(degrees)
    cx, cy = size[0] / 2, size[1] / 2
    corners = [(x, y) for x in (box[0], box[2]) for y in (box[1], box[3])]
    xs = [cx + (x - cx) * math.cos(turn) + (y - cy) * math.sin(turn) for x, y in corners]
    ys = [cy - (x - cx) * math.sin(turn) + (y - cy) * math.cos(turn) for x, y in corners]
    return round(min(xs), 2), round(min(ys), 2), round(max(xs), 2), round(max(ys), 2)


def degrade(page: np.ndarray, rng: random.Random, degrees: float) -> bytes:
    """A grey page (0 to 255) as the JPEG that comes out of the scanner, turned anticlockwise."""
    high, wide = page.shape
    matrix = cv2.getRotationMatrix2D((wide / 2, high / 2), degrees, 1.0)
    page = cv2.warpAffine(page, matrix, (wide, high), flags=cv2.INTER_CUBIC, borderValue=(255,))
    page = cv2.GaussianBlur(page, (0, 0), rng.uniform(0.3, 0.8)).astype(np.float32)
    low, top = rng.uniform(10, 60), rng.uniform(215, 250)
    page = low + page * (top - low) / 255
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 9), page.shape)
    image = Image.fromarray(np.clip(page + noise, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=rng.randint(55, 85))
    return buffer.getvalue()


def scan(path: Path, fields: list[Field], seed: str) -> list[Field]:
    """Replaces a text PDF by its scan. Returns the fields with their boxes where they are now."""
    rng = random.Random(seed)
    document = pypdfium2.PdfDocument(path)
    sizes = [page.get_size() for page in document]
    images = [page.render(scale=DPI / 72, grayscale=True).to_numpy() for page in document]  # pyright: ignore[reportArgumentType]
    document.close()
    out = canvas.Canvas(str(path), invariant=1)
    turns = []
    for size, image in zip(sizes, images, strict=True):
        degrees = rng.uniform(-MAX_DEGREES, MAX_DEGREES)
        turns.append(degrees)
        jpeg = degrade(image.reshape(image.shape[:2]), rng, degrees)
        out.setPageSize(size)
        out.drawImage(ImageReader(io.BytesIO(jpeg)), 0, 0, *size)
        out.showPage()
    out.save()
    return [replace(field, box=turned(field.box, turns[field.page], sizes[field.page])) for field in fields]
