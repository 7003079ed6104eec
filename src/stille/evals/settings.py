"""What is compared: kinds of attention with their parameters, by short names."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stille.errors import ConfigError

if TYPE_CHECKING:
    from stille.kernels.hsa import HSAConfig

_EDGE = 1 << 20  # bytes from each end of a file that tell it from others


@dataclass(frozen=True)
class Setting:
    """One kind of attention.

    Attributes:
        name: `full`, `hsa` or `hsa:2048:dense_below=0`, as it was asked for.
        attention: `full` or `hsa`.
        hsa: parameters of the latter.
    """

    name: str
    attention: str
    hsa: HSAConfig | None = None

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Reads `full`, or `hsa` with what differs from `HSAConfig()`: a budget first, then name=value, colons between.

        Raises:
            ConfigError: it cannot be read, or `HSAConfig` refuses the values.
        """
        kind, *parts = text.split(":")
        if kind == "full" and not parts:
            return cls(text, "full")
        if kind != "hsa":
            raise ConfigError(
                f"setting {text!r} is unknown; expected full, hsa, hsa:BUDGET or hsa:BUDGET:name=value, "
                "for example hsa:2048:dense_below=0"
            )
        from stille.kernels.hsa import HSAConfig

        types = {field.name: str(field.type) for field in dataclasses.fields(HSAConfig)}
        values: dict[str, Any] = {}
        for place, part in enumerate(parts):
            name, equals, value = part.partition("=")
            if place == 0 and not equals:
                name, value = "budget", part
            if name not in types:
                raise ConfigError(f"setting {text!r}: HSAConfig has no {name!r}; it has {', '.join(types)}")
            values[name] = _read(text, value, types[name])
        return cls(text, "hsa", HSAConfig(**values))

    def reads(self, length: int) -> str:
        """What is sparse at this length, in words; empty for full attention."""
        if self.hsa is None:
            return ""
        if length <= self.hsa.dense_limit:
            return f"only decode is sparse: prompts of fewer than {self.hsa.dense_limit:,} tokens are read in full"
        return f"prompt, question and decode are sparse, with {self.hsa.budget:,} keys each"

    def as_dict(self) -> dict[str, Any]:
        """For a report."""
        return {"name": self.name, "attention": self.attention, "hsa": self.hsa and dataclasses.asdict(self.hsa)}


def _read(text: str, value: str, kind: str) -> Any:
    if value.lower() == "none" and "None" in kind:
        return None
    if "bool" in kind and value.lower() in ("true", "false"):
        return value.lower() == "true"
    for name, read in (("int", int), ("float", float)):
        if name in kind:
            try:
                return read(value)
            except ValueError:
                raise ConfigError(f"setting {text!r}: {value!r} is no {name}") from None
    if "str" in kind:
        return value
    raise ConfigError(f"setting {text!r}: {value!r} is not a value of type {kind}")


def parse_settings(texts: list[str]) -> list[Setting]:
    """Settings in the order given, each once.

    Raises:
        ConfigError: see `Setting.parse`; or there is none.
    """
    settings = [Setting.parse(text) for text in dict.fromkeys(texts)]
    if not settings:
        raise ConfigError("no attention was asked for; give full, hsa or both")
    return settings


def fingerprint(path: str | Path) -> str:
    """Tells one model from another: a hash of its files' names, sizes, beginnings and ends.

    Args:
        path: a folder or a file, as `store.resolve` returns it.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file())
    digest = hashlib.sha256()
    for file in files:
        if file.suffix not in (".gguf", ".safetensors", ".json", ".bin", ".model"):
            continue
        size = file.stat().st_size
        digest.update(f"{'' if path.is_file() else file.name} {size}\n".encode())
        with open(file, "rb") as stream:
            digest.update(stream.read(_EDGE))
            stream.seek(max(0, size - _EDGE))
            digest.update(stream.read(_EDGE))
    return digest.hexdigest()[:16]


def code_fingerprint() -> str:
    """A hash of the sources that answers depend on, so that none is kept across a change of them."""
    import stille

    root = Path(stille.__file__).parent
    digest = hashlib.sha256()
    for part in ("kernels", "model", "engine"):
        for file in sorted((root / part).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()[:16]
