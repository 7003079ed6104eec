"""From files of conversations to a fine-tuned model: tokens, training, the folder that is served, the report."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from stille.errors import ConfigError
from stille.ledger import describe_commit, describe_machine
from stille.model.convert.delta import is_delta, tensor_digests, write_delta
from stille.model.load import LoadedModel, fetch, open_weights
from stille.train.config import TrainConfig
from stille.train.export import export, export_delta
from stille.train.loop import Progress, Result
from stille.train.sft.conversations import Conversation, read_conversations
from stille.train.sft.data import Rows, pack, render_all
from stille.train.sft.kept import key_of, read_rows, write_rows
from stille.train.sft.loop import fine_tune, judge
from stille.train.sft.render import Rendered, Renderer
from stille.train.weights import World

MODEL, REPORT = "model", "report.json"
TRAIN, HELD_OUT = "train", "held out"
FEW = 4096  # conversations that are rendered faster than other processes start


@dataclass(frozen=True)
class SftData:
    """What is learned from, and what judges.

    Attributes:
        train, held_out: rows; None: nothing is held out.
        files: of several files that judge, the rows of each.
    """

    train: Rows
    held_out: Rows | None
    files: Mapping[str, Rows] = field(default_factory=dict)

    def told(self) -> dict[str, Any]:
        """Numbers for a report."""
        names = ("conversations", "answers", "learned_tokens", "text_tokens", "dropped", "rows", "digest")
        parts = {"train": self.train, "held_out": self.held_out}
        return {part: {name: getattr(rows, name) for name in names} for part, rows in parts.items() if rows is not None}


def prepare_conversations(
    files: Sequence[Path],
    loaded: LoadedModel,
    length: int,
    *,
    held_out: float = 0.02,
    validation: Sequence[Path] = (),
    seed: int = 0,
    workers: int = 1,
    kept: Path | None = None,
) -> SftData:
    """Rows of the conversations of files.

    Args:
        files: .jsonl, see `read_conversations`; equal conversations count once.
        loaded: whose tokenizer and chat template are used.
        length: tokens of a row.
        held_out: share that only judges, by hash; without effect if `validation` is given.
        validation: files whose conversations only judge.
        seed: of the packing.
        workers: processes that render.
        kept: folder where rows are kept; rows of the same files and settings that are there are taken.

    Raises:
        ConfigError: files cannot be read or rendered, or nothing is left to learn from.
    """
    if not 0 <= held_out < 1:
        raise ConfigError(f"held_out={held_out}, expected a share from 0 to below 1.")
    file: Path | None = None
    if kept is not None:
        try:
            parts = {"train": files, "validation": validation}
            settings = {"length": length, "held_out": held_out, "seed": seed}
            file = kept / f"rows-{key_of(parts, loaded.tokenizer, loaded.eos_token_ids, **settings)}.npz"
        except OSError as error:
            raise ConfigError(f"the conversations cannot be read: {error}.") from error
        if (found := read_rows(file)) is not None:
            return _as_data(found)
    rows = _made(files, loaded, length, held_out, validation, seed, workers)
    if file is not None:
        write_rows(file, rows)
    return _as_data(rows)


def _as_data(rows: Mapping[str, Rows]) -> SftData:
    apart = {name: each for name, each in rows.items() if name not in (TRAIN, HELD_OUT)}
    return SftData(rows[TRAIN], rows.get(HELD_OUT), apart)


def _made(
    files: Sequence[Path], loaded: LoadedModel, length: int, held_out: float, validation: Sequence[Path], seed: int,
    workers: int,
) -> dict[str, Rows]:  # fmt: skip
    renderer = Renderer(loaded.tokenizer, loaded.eos_token_ids)
    every = _different(files)
    judging = _different(validation) if validation else [each for each in every if each.held_out(held_out)]
    known = {each.key for each in judging}
    learning = [each for each in every if each.key not in known]
    if not learning:
        raise ConfigError(f"of {len(every)} conversations none is left to learn from, {len(judging)} are held out.")
    wanted = {TRAIN: learning, HELD_OUT: judging}
    if len(validation) > 1:
        wanted |= {file.name: _different([file]) for file in validation}

    def rendered(each: Sequence[Conversation]) -> Iterator[Rendered]:
        return render_all(each, renderer, workers if len(each) >= FEW else 1)

    return {name: pack(rendered(each), length, seed) for name, each in wanted.items() if each}


def _different(files: Sequence[Path]) -> list[Conversation]:
    return list({each.key: each for each in read_conversations(files)}.values())


def steps_of(data: SftData, batch: int, epochs: float) -> int:
    """Steps in which every row comes up so many times."""
    return max(1, math.ceil(epochs * data.train.rows / batch))


def make_sft(
    model: str,
    loaded: LoadedModel,
    data: SftData,
    config: TrainConfig,
    out: Path,
    *,
    world: World | None = None,
    whole: bool = False,
    tensorboard: bool = False,
    on_step: Callable[[Progress], None] | None = None,
) -> Result:
    """Fine-tune a model; `OUT/model` is served by `stille serve`, `OUT/report.json` says what came of it.

    With pairs of low rank (`config.rank`) it is a delta on the model, or on its base if it is a delta itself, otherwise
    a folder with all weights. A stopped run leaves neither, and goes on when it is called again.

    Args:
        model: as `load_model` took it.
        loaded: the model in float32.
        data: its conversations.
        config: the settings.
        out: folder of the run.
        world: the processes; the first one writes.
        whole: all weights, pairs added in, in any case.
        tensorboard, on_step: see `stille.train.train`.

    Raises:
        StilleError: settings contradict each other, or the folder holds another run.
    """
    world = world or World(0, 1, torch.device("cpu"))
    before = _before(loaded, data, config, out, world)
    result = fine_tune(
        loaded.model, data.train, config, out, world=world, held_out=data.held_out, tensorboard=tensorboard,
        on_step=on_step,
    )  # fmt: skip
    if not result.finished:
        return result
    by_file = {name: judge(result.model, rows, config, world) for name, rows in data.files.items()}
    if not world.main:
        return result
    about: dict[str, Any] = {
        "trained_from": model, "steps": result.step, "tokens": result.tokens, "seconds": round(result.seconds, 1),
        "rank": config.rank, "dtype": config.dtype,
    }  # fmt: skip
    _write(model, loaded, result, out / MODEL, whole, about)
    report = {
        **about,
        "parameters_trained": _trained(result),
        "training": asdict(config),
        "data": data.told(),
        "before": before,
        "after": result.evaluation,
        "files": by_file,
        "machine": describe_machine(),
        "commit": describe_commit(),
        "command": " ".join(["stille", *sys.argv[1:]]),
        "quality": f"stille eval quality {out / MODEL} --against {model}",
    }
    scratch = out / f".{REPORT}.{os.getpid()}.part"
    scratch.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, out / REPORT)
    return result


def _before(loaded: LoadedModel, data: SftData, config: TrainConfig, out: Path, world: World) -> dict[str, float]:
    """The untrained model's answers, judged once for a run and kept beside it."""
    if data.held_out is None:
        return {}
    key = {"data": data.held_out.digest, "rows": config.eval_sequences}
    file = out / "before.json"
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return kept["found"]
    model: Any = loaded.model  # transformers wraps `to` in a way that types do not allow for
    found = judge(model.to(world.device), data.held_out, config, world)
    if world.main:
        out.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(f".{os.getpid()}.part")
        scratch.write_text(json.dumps({"key": key, "found": found}), encoding="utf-8")
        os.replace(scratch, file)
    return found


def _write(model: str, loaded: LoadedModel, result: Result, folder: Path, whole: bool, about: dict[str, Any]) -> None:
    if result.pairs is None or whole:
        export(result.model, loaded.tokenizer, folder)
    elif is_delta(path := fetch(model, False)):
        export_delta(result, model, folder, about)
    else:
        state = result.model.state_dict()
        tensors = {**result.pairs.tensors, **{name: state[name] for name in result.pairs.whole}}
        write_delta(folder, loaded.config, model, tensor_digests(open_weights(path)[1]), tensors, about)


def _trained(result: Result) -> int:
    if result.pairs is None:
        return sum(parameter.numel() for parameter in result.model.parameters())
    pairs = sum(value.numel() for value in result.pairs.tensors.values() if value.dtype == torch.int8)
    return pairs + sum(result.model.get_parameter(name).numel() for name in result.pairs.whole)
