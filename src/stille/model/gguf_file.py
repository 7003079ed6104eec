"""GGUF containers: metadata, the list of tensors, and their values dequantised to float32.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). Block layouts and
their dequantisation come from the `gguf` package. Parsing the header here costs a tenth of the package's own reader,
which makes several arrays of every vocabulary entry, and lets a damaged file end in one typed error.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from stille.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
PLAIN = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
MAX_DEPTH = 4  # of arrays within arrays; real files have none


@dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies in the file. `shape` is in torch's order (rows first)."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int
    nbytes: int


class _Cursor:
    """Reads little-endian values one after another; running out of bytes is `struct.error`."""

    def __init__(self, buffer: Any, size: int):
        self.buffer, self.size, self.at = buffer, size, 0

    def scalar(self, code: str) -> Any:
        value = struct.unpack_from("<" + code, self.buffer, self.at)[0]
        self.at += struct.calcsize("<" + code)
        return value

    def bytes(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise struct.error(f"{count} bytes wanted at {self.at}")
        self.at += count
        return self.buffer[self.at - count : self.at]

    def string(self) -> str:
        return self.bytes(self.scalar("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            value = self.scalar(SCALARS[kind])
            # The shortest decimal of a float32 is the number its author wrote: 1e-05, not 9.99999974e-06.
            return float(str(np.float32(value))) if SCALARS[kind] == "f" else value
        if kind == ARRAY and depth < MAX_DEPTH:
            item, count = self.scalar("I"), self.scalar("Q")
            if item in SCALARS:
                data = self.bytes(count * struct.calcsize("<" + SCALARS[item]))
                return np.frombuffer(data, np.dtype("<" + SCALARS[item])).tolist()
            if count > self.size - self.at:
                raise struct.error(f"array of {count} entries at {self.at}")
            return [self.value(item, depth + 1) for _ in range(count)]
        raise ValueError(f"unknown value type {kind}")


class GGUFFile:
    """An opened GGUF file.

    Attributes:
        metadata: every key with its value; arrays are lists.
        tensors: by GGUF name.

    Raises:
        CheckpointError: not a GGUF file, an unknown version, or truncated.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GGUFTensor] = {}
        size = self.path.stat().st_size
        if size < 24:
            raise CheckpointError(f"{self.path} has {size} bytes, too few for a GGUF file; fetch it again.")
        with self.path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._parse(_Cursor(self._map, size), size)
        except (struct.error, OverflowError, MemoryError) as error:
            raise CheckpointError(f"{self.path} is truncated or damaged ({error}); fetch it again.") from error
        except ValueError as error:
            raise CheckpointError(f"{self.path} is damaged: {error}.") from error

    def _parse(self, cursor: _Cursor, size: int) -> None:
        if (magic := cursor.bytes(4)) != MAGIC:
            raise CheckpointError(f"{self.path} begins with {magic!r}, so it is not a GGUF file.")
        if (version := cursor.scalar("I")) not in VERSIONS:
            raise CheckpointError(
                f"{self.path} has GGUF version {version}; little-endian versions {VERSIONS} are readable."
            )
        tensor_count, value_count = cursor.scalar("Q"), cursor.scalar("Q")
        for _ in range(value_count):
            key = cursor.string()
            self.metadata[key] = cursor.value(cursor.scalar("I"))
        infos = [self._tensor_info(cursor) for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"alignment {alignment!r}")
        start = -(-cursor.at // alignment) * alignment
        for name, shape, kind, offset in infos:
            block, block_bytes = GGML_QUANT_SIZES[kind]
            if name in self.tensors:
                raise ValueError(f"two tensors are named {name!r}")
            if not shape or shape[-1] % block:
                raise ValueError(f"tensor {name!r} of type {kind.name} has shape {list(shape)}")
            nbytes = math.prod(shape) // block * block_bytes
            if start + offset + nbytes > size:
                raise CheckpointError(
                    f"{self.path} is truncated: tensor {name!r} ends at byte {start + offset + nbytes}, the file has "
                    f"{size}. Fetch it again."
                )
            self.tensors[name] = GGUFTensor(name, shape, kind, start + offset, nbytes)

    @staticmethod
    def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
        name = cursor.string()
        dims = [cursor.scalar("Q") for _ in range(cursor.scalar("I"))]
        return name, tuple(reversed(dims)), GGMLQuantizationType(cursor.scalar("I")), cursor.scalar("Q")

    def read(self, name: str) -> np.ndarray:
        """Values of a tensor as a new, writable float32 array in torch's shape.

        Raises:
            CheckpointError: the `gguf` package cannot dequantise its type.
        """
        tensor, raw = self.tensors[name], self.raw(name)
        if (plain := PLAIN.get(tensor.type.name)) is not None:
            return raw.view(plain).reshape(tensor.shape).astype(np.float32)
        block, block_bytes = GGML_QUANT_SIZES[tensor.type]
        try:
            values = dequantize(raw.reshape(-1, tensor.shape[-1] // block * block_bytes), tensor.type)
        except NotImplementedError as error:
            raise CheckpointError(
                f"tensor {name!r} in {self.path} has type {tensor.type.name}, which the gguf package cannot "
                "dequantise. Use a file with another quantisation."
            ) from error
        return values.reshape(tensor.shape).astype(np.float32, copy=False)

    def raw(self, name: str) -> np.ndarray:
        """The bytes of a tensor as they are stored, a view of the file: uint8."""
        tensor = self.tensors[name]
        return np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.offset)
