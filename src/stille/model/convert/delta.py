"""A delta: what a Stille model has beyond the checkpoint that it was made from, its base.

A folder with
- `config.json`: the configuration of the whole model;
- `delta.json`: the base and its fingerprint, the name, size and sha256 of the tensors' file, how it was made;
- `delta-<sha256>.safetensors`: new tensors under their names in the model, and changes of others.

Dense FFNs are not stored again: `ORDER`, a permutation of the neurons of every layer, makes experts out of the base's.
A change of a tensor is a whole new value (its name), a difference that is added (`<name>.difference`), or one of low
rank, B @ A (`<name>.low_rank_a` [.., r, in] and `<name>.low_rank_b` [.., out, r]): floating point, or int8 with a
factor for each of the r components (`<name>.low_rank_a.factors` and `<name>.low_rank_b.factors` [.., r]). A pair may
also name a matrix of a dense FFN that was split (`model.layers.0.mlp.gate_proj.weight`): it is added before, neurons in
the base's order.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stille._version import __version__
from stille.errors import CheckpointError, ConfigError, ModelNotFoundError
from stille.model.checkpoint import HEAD, TensorSource, listing
from stille.model.config import StilleConfig
from stille.model.convert.split import Layout, split_ffn
from stille.model.routing import ExpertsConfig
from stille.model.store import known_models

DELTA_FILE, FORMAT = "delta.json", 2  # 1 had no pairs in int8
ORDER = "convert.order"
DIFFERENCE, LOW_RANK_A, LOW_RANK_B, FACTORS = ".difference", ".low_rank_a", ".low_rank_b", ".factors"
COMPONENT = {LOW_RANK_A: -2, LOW_RANK_B: -1}
"""The axis of a pair's components."""
DENSE = ("gate_proj", "up_proj", "down_proj")
SPLIT = re.compile(r"model\.layers\.(\d+)\.mlp\.((?:shared\.\w+\.weight)|gate_up_proj|down_proj)")
# Fields of the configuration that decide what the base's tensors mean; later stages may change others.
SAME_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "attention_bias", "attention_output_bias", "qk_norm", "rms_norm_eps"),
)
THREADS = 4


class RawSource(TensorSource, Protocol):
    """A checkpoint on disk, whose bytes can be seen as they are stored."""

    def raw(self, name: str) -> Any:
        """The bytes of a tensor, as a buffer; called from several threads."""
        ...


@dataclass(frozen=True)
class Delta:
    """An opened delta.

    Attributes:
        folder: where it lies.
        base: name of its base, as `store.resolve` takes it.
        relative: the way from the folder to the base, if that is a local one.
        digests: sha256 of each tensor of the base.
        file: its tensors.
        about: how it was made.
    """

    folder: Path
    base: str
    relative: str | None
    digests: dict[str, str]
    file: Path
    about: dict[str, Any] = field(default_factory=dict)

    def base_source(self) -> str | Path:
        """What to resolve to find the base: where it lies from here, if it is there, else its name."""
        if self.relative is not None and (path := self.folder / self.relative).exists():
            return path.resolve()
        return self.base

    @contextmanager
    def naming(self):
        """A base that is not found becomes an error that names the delta too."""
        try:
            yield
        except ModelNotFoundError as error:
            raise ModelNotFoundError(f"the delta {self.folder} needs its base {self.base!r}: {error}") from error


def is_delta(path: str | Path) -> bool:
    """Whether a path is a delta's folder."""
    return (Path(path) / DELTA_FILE).is_file()


def tensor_digests(source: RawSource) -> dict[str, str]:
    """sha256 of every tensor of a checkpoint: its shape and its bytes as stored, wherever they lie."""

    def digest(item: tuple[str, tuple[int, ...]]) -> str:
        found = hashlib.sha256(f"{list(item[1])}".encode())
        found.update(source.raw(item[0]))
        return found.hexdigest()

    items = sorted(source.shapes().items())
    with ThreadPoolExecutor(THREADS) as pool:  # hashing frees the interpreter's lock
        return dict(zip((name for name, _ in items), pool.map(digest, items), strict=True))


def fingerprint(digests: Mapping[str, str]) -> str:
    """sha256 over the names and digests of all tensors."""
    return hashlib.sha256("".join(f"{name} {digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def write_delta(
    folder: Path,
    config: StilleConfig,
    base: str | Path,
    digests: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any] | None = None,
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write a delta's folder; it is there whole or not at all, and takes the place of an older delta.

    Args:
        folder: must not exist, be empty, or hold a delta.
        config: of the whole model.
        base: as the base was asked for; of an opened delta `base_source()`.
        digests: `tensor_digests` of the base.
        tensors: new tensors and changes, see the module.
        about: how it was made, for `delta.json`.
        extra: other files of the folder (a report), by name.

    Raises:
        ConfigError: the folder holds something else.
    """
    check_target(folder)
    local = Path(str(base)).expanduser()
    base_name, relative = str(base), None
    if base_name not in known_models() and local.exists():  # as `resolve` looks
        base_name, relative = str(local.resolve()), os.path.relpath(local.resolve(), folder.resolve())
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.part"
    temporary.mkdir(parents=True)
    try:
        file = temporary / "delta.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
        digest = _file_digest(file)
        file = file.rename(temporary / f"delta-{digest[:12]}.safetensors")
        values = {
            "format": FORMAT,
            "stille": __version__,
            "base": {"name": base_name, "relative": relative, "fingerprint": fingerprint(digests)},
            "file": {"name": file.name, "bytes": file.stat().st_size, "sha256": digest},
            "about": dict(about or {}),
            "base_tensors": dict(digests),
        }
        config.save_pretrained(temporary)
        for name, content in (extra or {}).items():
            (temporary / name).write_bytes(content)
        (temporary / DELTA_FILE).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        file.chmod((temporary / DELTA_FILE).stat().st_mode)  # safetensors' files are for the owner alone
        for written in temporary.iterdir():
            with written.open("rb") as opened:
                os.fsync(opened.fileno())
        put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_target(folder: Path) -> None:
    """Whether a delta may be written there.

    Raises:
        ConfigError: it is a file, or a folder with something else in it.
    """
    if folder.exists() and not is_delta(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is no delta; name a new folder, or remove it first.")


def put_in_place(made: Path, folder: Path) -> None:
    """Rename a finished folder to where it belongs; what was there goes."""
    old = made.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    made.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_delta(folder: str | Path) -> Delta:
    """Open a delta and check its own files.

    Raises:
        CheckpointError: damaged, truncated, or of a newer format; the message names the delta and its base.
    """
    folder = Path(folder)
    try:
        values = json.loads((folder / DELTA_FILE).read_text(encoding="utf-8"))
        given = values["format"]
        base, entry = values["base"], values["file"]
        delta = Delta(
            folder, str(base["name"]), base["relative"], dict(values["base_tensors"]),
            folder / Path(entry["name"]).name, dict(values["about"]),
        )  # fmt: skip
        expected, size, stated = str(entry["sha256"]), int(entry["bytes"]), str(base["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / DELTA_FILE} is damaged ({error!r}); make or fetch the delta again."
        ) from error
    whose = f"of the delta {folder} on the base {delta.base!r}"
    if given not in range(1, FORMAT + 1):
        raise CheckpointError(
            f"{DELTA_FILE} {whose} has format {given!r}; this version reads 1 to {FORMAT}. Update Stille."
        )
    if fingerprint(delta.digests) != stated:
        raise CheckpointError(f"{DELTA_FILE} {whose} is damaged: the base's digests do not give its fingerprint.")
    if not delta.file.is_file():
        raise CheckpointError(f"{delta.file.name} {whose} is missing; make or fetch the delta again.")
    if (found := delta.file.stat().st_size) != size:
        raise CheckpointError(f"{delta.file.name} {whose} is truncated: {found} bytes, expected {size}.")
    if (digest := _file_digest(delta.file)) != expected:
        raise CheckpointError(f"{delta.file.name} {whose} is damaged: sha256 {digest}, expected {expected}.")
    return delta


def _file_digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class DeltaSource:
    """Base and delta as one checkpoint (a `TensorSource`).

    Args:
        delta: opened.
        config: of the whole model.
        base_config, base: of the base.

    Attributes:
        plain: shapes of what the base gives, its neurons split into experts.
        tied: names that a state has beside another's, so that they are not stored.

    Raises:
        CheckpointError: another base than the delta's, a configuration that does not fit it, or changes that fit no
            tensor; messages name both sides.
    """

    def __init__(self, delta: Delta, config: StilleConfig, base_config: StilleConfig, base: RawSource):
        self.label = f"the delta {delta.folder} on the base {base.label}"
        self._base, self._delta = base, delta
        self._check_base()
        differing = [name for name in SAME_FIELDS if getattr(config, name) != getattr(base_config, name)]
        if differing:
            told = ", ".join(
                f"{name} is {getattr(config, name)!r} in the delta and {getattr(base_config, name)!r} in the base"
                for name in differing
            )
            raise CheckpointError(f"the configurations of {self.label} do not fit: {told}.")
        try:
            self._file: Any = safe_open(delta.file, framework="pt")
            self._own = {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{delta.file.name} of {self.label} is damaged ({error}).") from error
        self._cached: tuple[Any, dict[str, Tensor]] = (None, {})
        self._dense: set[str] = set()  # matrices of split layers that pairs change
        self.plain = self._split(config, base_config)
        self.tied = {HEAD} if config.tie_word_embeddings else set()
        self._shapes = dict(self.plain)
        self._collect_changes()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        if name in self._own:
            return self._file.get_tensor(name).to(dtype, copy=True)
        ends = [end for end in (DIFFERENCE, LOW_RANK_A) if name + end in self._own]
        if not ends:
            return self._before(name, dtype, True)
        value = self._before(name, torch.float32, True)
        if DIFFERENCE in ends:
            value = value + self._file.get_tensor(name + DIFFERENCE).float()
        if LOW_RANK_A in ends:
            value = value + self._product(name)
        return value.to(dtype)

    def own(self) -> dict[str, Tensor]:
        """All tensors of the delta's file."""
        return {name: self._file.get_tensor(name) for name in self._own}

    def orders(self) -> dict[str, Tensor]:
        """The order of the neurons as the delta keeps it; nothing, if no layer was split."""
        return {ORDER: self._file.get_tensor(ORDER)} if ORDER in self._own else {}

    def order(self, layer: int) -> Tensor | None:
        """int64 [I]: new neuron i is the base's neuron order[i]; None if the layer was not split."""
        return self._file.get_tensor(ORDER)[layer].long() if layer in self._layers else None

    def unchanged(self, name: str, dtype: torch.dtype) -> Tensor:
        """A tensor of `plain`, without the delta's changes."""
        return self._before(name, dtype, False)

    def _product(self, name: str) -> Tensor:
        a, b = (self._factor(name + end, axis) for end, axis in COMPONENT.items())
        return b @ a

    def _factor(self, name: str, axis: int) -> Tensor:
        value = self._file.get_tensor(name)
        return (
            from_int8(value, self._file.get_tensor(name + FACTORS), axis)
            if value.dtype == torch.int8
            else value.float()
        )

    def _before(self, name: str, dtype: torch.dtype, changed: bool) -> Tensor:
        """A tensor of `plain`; with `changed`, of a base to whose dense FFNs their pairs were added."""
        match = SPLIT.fullmatch(name)
        if not match or int(match[1]) not in self._layers:
            return self._base.read(name, dtype)
        key = (int(match[1]), dtype, changed)
        if self._cached[0] != key:  # a layer's tensors are asked for one after another
            dense = []
            for part in DENSE:
                matrix = f"model.layers.{key[0]}.mlp.{part}.weight"
                if changed and matrix in self._dense:
                    dense.append((self._base.read(matrix, torch.float32) + self._product(matrix)).to(dtype))
                else:
                    dense.append(self._base.read(matrix, dtype))
            order = self._file.get_tensor(ORDER)[key[0]]
            self._cached = (key, split_ffn(dense[0], dense[1], dense[2], order, self._layout))
        return self._cached[1][match[2]].clone()

    def _check_base(self) -> None:
        found, wanted = tensor_digests(self._base), self._delta.digests
        if found == wanted:
            return
        missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
        other = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
        problems = [("missing", missing), ("not in it", extra), ("with other contents", other)]
        told = "; ".join(f"{what}: {listing(names, 4)}" for what, names in problems if names)
        raise CheckpointError(
            f"{self._base.label} is not the base of the delta {self._delta.folder}, which was made on "
            f"{self._delta.base!r} (fingerprint {fingerprint(wanted)[:12]}, found {fingerprint(found)[:12]}). {told}."
        )

    def _split(self, config: StilleConfig, base_config: StilleConfig) -> dict[str, tuple[int, ...]]:
        """Shapes after dense layers became experts, before changes."""
        shapes = dict(self._base.shapes())
        pairs = zip(config.ffn_kinds, base_config.ffn_kinds, strict=True)
        self._layers = {i for i, kinds in enumerate(pairs) if kinds == ("experts", "dense")}
        if not self._layers:
            return shapes
        settings = ExpertsConfig.from_dict(config.experts)
        inner, width, experts, size = (
            config.intermediate_size,
            config.hidden_size,
            settings.num_experts,
            settings.expert_size,
        )
        try:
            self._layout = Layout.of(inner, experts, settings.shared_size, size)
        except ConfigError as error:
            raise CheckpointError(f"the configuration of {self.label} does not fit its base: {error}") from error
        if self._own.get(ORDER) != (config.num_hidden_layers, inner):
            raise CheckpointError(
                f"{ORDER} of {self.label} is {self._own.get(ORDER)}, expected {(config.num_hidden_layers, inner)}."
            )
        order = self._file.get_tensor(ORDER).long()
        if not torch.equal(order.sort(dim=1).values, torch.arange(inner).expand_as(order)):
            raise CheckpointError(f"{ORDER} of {self.label} is no permutation of {inner} neurons in each layer.")
        for layer in self._layers:
            mlp = f"model.layers.{layer}.mlp."
            for part in DENSE:
                shapes.pop(f"{mlp}{part}.weight", None)
            shapes[mlp + "gate_up_proj"] = (experts, 2 * size, width)
            shapes[mlp + "down_proj"] = (experts, width, size)
            if shared := settings.shared_size:
                for part in DENSE:
                    shapes[f"{mlp}shared.{part}.weight"] = (width, shared) if part == "down_proj" else (shared, width)
        return shapes

    def _collect_changes(self) -> None:
        split = {f"model.layers.{layer}.mlp.{part}.weight" for layer in self._layers for part in DENSE}
        base = self._base.shapes()
        for name, shape in self._own.items():
            if name == ORDER or name.endswith((LOW_RANK_B, FACTORS)):
                continue
            target, result = name, shape
            if name.endswith(DIFFERENCE):
                target = name.removesuffix(DIFFERENCE)
            elif name.endswith(LOW_RANK_A):
                target = name.removesuffix(LOW_RANK_A)
                other = self._own.get(target + LOW_RANK_B, ())
                result = (*other[:-1], shape[-1]) if other[-1:] == shape[-2:-1] and self._scaled(target) else ()
            dense = target in split and name.endswith(LOW_RANK_A)
            known = base.get(target) if dense else self._shapes.get(target)
            if target != name and known != result:
                raise CheckpointError(f"{name} {list(shape)} of {self.label} changes {target}, which is {known}.")
            if dense:
                self._dense.add(target)
            else:
                self._shapes[target] = result

    def _scaled(self, target: str) -> bool:
        """Whether each half of a pair in int8 has a factor for each component."""
        return all(
            self._file.get_slice(name).get_dtype() != "I8"
            or self._own.get(name + FACTORS) == (*self._own[name][:-2], self._own[name][axis])
            for name, axis in ((target + end, axis) for end, axis in COMPONENT.items())
        )


def to_int8(value: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """A half of a pair in 8 bits: int8 in its shape, and float32 [.., r], a factor for each component.

    Args:
        value: [.., r, in] or [.., out, r], floating point.
        axis: of the components, -2 or -1.
    """
    value = value.detach().float()
    scale = value.abs().amax(-1 if axis == -2 else -2).clamp(min=1e-30) / 127
    return (value / scale.unsqueeze(-1 if axis == -2 else -2)).round().to(torch.int8), scale


def from_int8(value: Tensor, scale: Tensor, axis: int) -> Tensor:
    """float32, what `to_int8` made 8 bits of."""
    return value.float() * scale.unsqueeze(-1 if axis == -2 else -2)


def changes(
    state: Mapping[str, Tensor], source: DeltaSource, *, dtype: torch.dtype = torch.bfloat16, rank: int = 0
) -> dict[str, Tensor]:
    """All tensors of the delta that gives trained weights on the same base.

    Args:
        state: of the trained model, by name.
        source: the delta that training began with. Its own changes are not added to: differences are to the base.
        dtype: of differences; the sum is as exact as the difference is.
        rank: above 0, differences of matrices are kept to this rank (by SVD) where that is smaller.

    Returns:
        For `write_delta`: what the base lacks, whole; what differs from it; the order of the neurons.
    """
    found = source.orders()
    for name, value in state.items():
        value = value.detach().cpu()
        if name not in source.plain:
            if name not in source.tied:
                found[name] = value
            continue
        difference = value.float() - source.unchanged(name, torch.float32)
        if not difference.any():
            continue
        rows, columns = difference.shape[-2:] if difference.dim() > 1 else (0, 0)
        if rank and rank * (rows + columns) < rows * columns:
            u, s, v = torch.linalg.svd(difference, full_matrices=False)
            root = s[..., :rank].sqrt()
            found[name + LOW_RANK_B] = (u[..., :rank] * root.unsqueeze(-2)).to(dtype)
            found[name + LOW_RANK_A] = (v[..., :rank, :] * root.unsqueeze(-1)).to(dtype)
        else:
            found[name + DIFFERENCE] = difference.to(dtype)
    return found
