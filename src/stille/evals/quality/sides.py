"""Models and budgets that answer the same: loaded one after the other, each only if an answer of it is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stille.errors import ConfigError, UnsupportedError
from stille.evals.protocol import Answer, AnswerStore, describe
from stille.evals.quality.answers import VERSION, Asked, Subject, run
from stille.evals.quality.text import Window, load_windows
from stille.evals.settings import code_fingerprint, fingerprint

if TYPE_CHECKING:
    from stille.model import LoadedModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Side:
    """A model at one budget.

    Attributes:
        name: the model's, with the budget if one was asked for.
        path: of the model.
        budget: mean number of experts; None: its own, or it has none.
    """

    name: str
    path: Path
    budget: float | None = None


@dataclass
class Sides:
    """What is compared, and how it is computed.

    Attributes:
        sides: the base first, if there is one.
        base_name: its name.
        dtype_name, device: of the arithmetic.
    """

    sides: list[Side]
    base_name: str | None
    dtype_name: str
    device: str

    @property
    def base(self) -> Side | None:
        return self.sides[0] if self.base_name is not None else None

    def load(self, side: Side) -> LoadedModel:
        from stille.model import load_model

        return load_model(side.path, dtype=DTYPES[self.dtype_name], device=self.device, progress=False)

    def windows(self, files: Sequence[Path], tokens: int, length: int) -> list[Window]:
        """Pieces of texts in the tokens of the first side.

        Raises:
            ConfigError: a file cannot be read or is too short, or two have one name.
        """
        from stille.model.convert.delta import is_delta, read_delta
        from stille.model.load import fetch_base
        from stille.model.tokenizer import load_tokenizer

        if not files:
            return []
        if len({file.name for file in files}) < len(files):
            raise ConfigError("two texts have the same name, by which results are told apart; rename one.")
        path = self.sides[0].path
        path = fetch_base(read_delta(path), progress=False) if is_delta(path) else path
        tokenizer = load_tokenizer(path)
        return [window for file in files for window in load_windows(tokenizer, file, tokens, length)]


def sides_of(
    paths: dict[str, Path],
    models: Sequence[str],
    against: str | None,
    budgets: Sequence[float],
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> Sides:
    """The base, then each model at each budget; models without experts take no budget.

    Args:
        paths: name -> where the model lies.

    Raises:
        ConfigError: a budget that a model does not take.
        UnsupportedError: a dtype that is not computed in here, or no such device.
    """
    from stille.model import ExpertsConfig, load_config
    from stille.model.routing import check_budget

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UnsupportedError(f"device {device!r} is not available: use auto, cpu, or cuda where torch sees a GPU.")
    if dtype == "auto":
        dtype = "bf16" if device == "cuda" else "fp32"
    if dtype not in DTYPES:
        raise UnsupportedError(f"dtype {dtype!r}: likelihoods are computed in {' or '.join(DTYPES)}.")
    if threads is not None:
        torch.set_num_threads(threads)
    sides = [] if against is None else [Side(against, paths[against])]
    for name in dict.fromkeys(models):
        config = load_config(paths[name], progress=False)
        if config.experts is None or not budgets:
            if name != against:
                sides.append(Side(name, paths[name]))
            continue
        for budget in budgets:
            check_budget(budget, ExpertsConfig.from_dict(config.experts))
            sides.append(Side(f"{name} at {budget:g}", paths[name], budget))
    return Sides(sides, against, dtype, device)


def run_sides(
    sides: Sides,
    asked: Sequence[Asked],
    file: Path,
    advance: Callable[[Side], Callable[[int], None]],
) -> dict[str, list[Answer]]:
    """Answers by the name of the side.

    Args:
        file: where answers are kept.
        advance: side -> what is told how many more are answered.
    """
    store, code = AnswerStore(file), code_fingerprint()
    loaded: dict[Path, LoadedModel] = {}
    prints = {side.path: fingerprint(side.path) for side in sides.sides}

    def model_of(side: Side) -> Any:
        keep = {side.path} | ({sides.base.path} if sides.base else set())
        for path in [path for path in loaded if path not in keep]:
            del loaded[path]
        if side.path not in loaded:
            loaded[side.path] = sides.load(side)
        return loaded[side.path]

    def answer(side: Side, some: Sequence[Asked]) -> list[Answer]:
        one = model_of(side)
        texts = any(isinstance(each, Window) for each in some)
        base = model_of(sides.base).model if texts and sides.base is not None and side is not sides.base else None
        return Subject(one.model, one.tokenizer, side.budget, base).answer(some)

    given = {}
    for side in sides.sides:
        base = None if sides.base is None or side is sides.base else prints[sides.base.path]
        about = {"model": prints[side.path], "base": base, "budget": side.budget}
        setting = describe(**about, code=code, quality=VERSION, dtype=sides.dtype_name, device=sides.device)
        given[side.name] = run(
            lambda some, side=side: answer(side, some),
            asked,
            setting=setting,
            store=store,
            batch=1024 if sides.device == "cuda" else 16,  # what an interruption may lose
            on_answers=advance(side),
        )
    return given
