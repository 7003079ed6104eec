"""`stille train`: a model from text alone, or a converted one from its dense teacher."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stille.cli import train_default, train_draft, train_sft, train_video
from stille.cli.options import DEFAULT_MODEL, examples

if TYPE_CHECKING:
    from stille.model import StilleForCausalLM
    from stille.train import Progress, TrainConfig, World

EXAMPLES = examples(
    ("stille train pretrain TEXT --out run", "a small model with experts, from scratch, on bytes"),
    ("stille train distill MODEL TEXT --out run", "a converted model, taught by its dense original"),
    ("stille train default --out made --device cuda", "the default model, from its dense base to the finished delta"),
    ("stille train draft --out made --prompts chats.jsonl", "a draft head that makes a model's answers faster"),
    ("stille train sft --data chats.jsonl --out tuned", "conversations, tool calls included"),
    ("stille train video --minutes 20 --out cam", "the perception model of cameras"),
)
EXAMPLES_PRETRAIN = examples(
    ("stille train pretrain docs src --out run --steps 500", "files and folders of text; byte tokens"),
    ("stille train pretrain corpus.jsonl --out run --minutes 20", "as many steps as fit into the time"),
    ("stille train pretrain corpus.jsonl --out run --tokenizer stille-135m", "another model's tokenizer"),
    ("stille train pretrain corpus.jsonl --out run --gate top_k --target-k 8 --weights normalised", "fixed top-8"),
    ("torchrun --nproc-per-node 8 -m stille.cli train pretrain corpus.jsonl --out run", "eight GPUs"),
    note="The same command again goes on where the run was stopped. The model comes to lie in OUT/model.",
)
EXAMPLES_DISTILL = examples(
    ("stille train distill MODEL corpus.jsonl --out run --minutes 20", "MODEL: a folder made by conversion"),
    ("stille train distill DELTA corpus.jsonl --out run --rank 32", "OUT/model is a delta again, megabytes more"),
    ("stille train distill MODEL corpus.jsonl --out run --kl 1 --layers 0 --next-token 0.1", "other losses"),
    note="The same command again goes on where the run was stopped. The model comes to lie in OUT/model.",
)
INTERRUPTED = 130
MODEL, RUN, LOSS, WATCH = "Model", "Run", "Loss", "Saving and watching"

app = typer.Typer(
    name="train",
    help="Train a model from scratch, teach a converted one, fine-tune one, make the default model or a draft head.",
    epilog=EXAMPLES,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _option(panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **more)


Text = Annotated[list[Path], typer.Argument(help="Files or folders: plain text, or .jsonl with a field text.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder of the run: checkpoints, metrics, the model.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="JSON with fields of TrainConfig; options given here go before it."),
]
Steps = Annotated[int | None, _option(RUN, help="Steps of the optimizer. (default: 1000, or by --minutes)")]
Minutes = Annotated[float | None, _option(RUN, help="Wall-clock limit; the schedule finishes by it.")]
BatchSize = Annotated[int, _option(RUN, help="Sequences of a step, over all processes.")]
MicroBatch = Annotated[int | None, _option(RUN, help="Sequences computed at once. (default: all of a process)")]
Length = Annotated[int, _option(RUN, help="Tokens of a sequence.")]
Rate = Annotated[float, _option(RUN, help="Peak learning rate.")]
Warmup = Annotated[int, _option(RUN, help="Steps until the peak.")]
Schedule = Annotated[str, _option(RUN, help="cosine, or wsd: level, then linear at the end.")]
Decay = Annotated[float, _option(RUN, help="Share of the run in which wsd decays.")]
WeightDecay = Annotated[float, _option(RUN, help="Of matrices.")]
Clip = Annotated[float, _option(RUN, help="Largest norm of the gradient; 0: any.")]
Dtype = Annotated[str, _option(RUN, help="fp32, bf16 (float32 master weights), auto: bf16 on a GPU.")]
Device = Annotated[str, _option(RUN, help="auto, cpu or cuda.")]
Parallel = Annotated[str, _option(RUN, help="Under torchrun: replicate the model, or fsdp: share it (FSDP2).")]
Seed = Annotated[int, _option(RUN, help="Of fresh weights and of the order of the data.")]
Rank = Annotated[
    int,
    _option(RUN, min=0, help="Change matrices by pairs of this rank; of a delta a delta results. 0: all weights."),
]
Anneal = Annotated[float, _option(RUN, help="Share of the run over which all experts become the target.")]
HeldOut = Annotated[float, _option(RUN, help="Share of the documents kept for evaluation.")]
NextToken = Annotated[float, _option(LOSS, help="Weight of the next token's cross-entropy.")]
Kl = Annotated[float, _option(LOSS, help="Weight of the divergence from the teacher.")]
Layers = Annotated[float, _option(LOSS, help="Weight of the layers' error relative to the teacher's.")]
BudgetLoss = Annotated[float, _option(LOSS, help="Weight of routing weights times load (ReMoE).")]
SaveEvery = Annotated[int, _option(WATCH, help="Steps between checkpoints.")]
Keep = Annotated[int, _option(WATCH, help="Checkpoints that stay.")]
LogEvery = Annotated[int, _option(WATCH, help="Steps between lines of OUT/metrics.jsonl.")]
EvalEvery = Annotated[int, _option(WATCH, help="Steps between evaluations; 0: at the end only.")]
EvalSequences = Annotated[int, _option(WATCH, help="Held-out sequences of an evaluation.")]
TensorBoard = Annotated[bool, _option(WATCH, "--tensorboard", help="Metrics for TensorBoard too, if installed.")]
Cache = Annotated[Path | None, _option(WATCH, help="Folder of tokenised text. (default: in the cache folder)")]


@app.command("pretrain", epilog=EXAMPLES_PRETRAIN)
def pretrain_command(
    ctx: typer.Context,
    text: Text,
    out: Out,
    config: ConfigFile = None,
    tokenizer: Annotated[str, _option(MODEL, help="bytes, or a model whose tokenizer is used.")] = "bytes",
    model_config: Annotated[
        Path | None, _option(MODEL, help="A config.json in place of the options below (vocabulary: the tokenizer's).")
    ] = None,
    hidden: Annotated[int, _option(MODEL, help="Hidden size.")] = 256,
    depth: Annotated[int, _option(MODEL, help="Decoder layers.")] = 6,
    heads: Annotated[int, _option(MODEL, help="Query heads.")] = 4,
    kv_heads: Annotated[int | None, _option(MODEL, help="Key/value heads. (default: heads)")] = None,
    experts: Annotated[int, _option(MODEL, help="Routed experts of a layer; 0: dense layers.")] = 16,
    expert_size: Annotated[int, _option(MODEL, help="Inner neurons of a routed expert.")] = 64,
    shared_size: Annotated[int, _option(MODEL, help="Of the shared expert, or of a dense layer.")] = 256,
    router_size: Annotated[int, _option(MODEL, help="Inner width of the gate; 0: one linear map.")] = 0,
    gate: Annotated[str, _option(MODEL, help="threshold (DEB) or top_k (a fixed number).")] = "threshold",
    target_k: Annotated[float, _option(MODEL, help="Mean number of routed experts of a token.")] = 4.8,
    weights: Annotated[str, _option(MODEL, help="Of experts: sigmoid, normalised (V3) or unit.")] = "sigmoid",
    steps: Steps = None,
    minutes: Minutes = None,
    batch: BatchSize = 32,
    micro_batch: MicroBatch = None,
    length: Length = 512,
    lr: Rate = 1e-3,
    warmup: Warmup = 50,
    schedule: Schedule = "cosine",
    decay: Decay = 0.3,
    weight_decay: WeightDecay = 0.1,
    clip: Clip = 1.0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    parallel: Parallel = "replicate",
    seed: Seed = 0,
    anneal: Anneal = 0.0,
    held_out: HeldOut = 0.02,
    budget_loss: BudgetLoss = 0.0,
    save_every: SaveEvery = 500,
    keep: Keep = 2,
    log_every: LogEvery = 10,
    eval_every: EvalEvery = 0,
    eval_sequences: EvalSequences = 64,
    tensorboard: TensorBoard = False,
    cache: Cache = None,
) -> None:
    """Train a small model from scratch on text: next-token loss, dense layers or experts."""
    from stille.train import open_world
    from stille.train.config import read_json

    with open_world(device) as world:
        settings = _settings(ctx, config, world, {"budget": budget_loss})
        plan = _Plan(world, settings, text, out, held_out, cache, tensorboard)
        plan.use_tokenizer(tokenizer)
        if model_config is not None:
            values: dict[str, Any] = read_json(model_config)
        else:
            values = dict(
                hidden_size=hidden, num_hidden_layers=depth, num_attention_heads=heads, num_key_value_heads=kv_heads,
                intermediate_size=shared_size, max_position_embeddings=max(2048, settings.length),
                tie_word_embeddings=True,
            )  # fmt: skip
            if experts:
                values["ffn_kinds"] = ["experts"] * depth
                values["experts"] = dict(
                    num_experts=experts, expert_size=expert_size, shared_size=shared_size, router_size=router_size,
                    gate=gate, target_k=target_k, max_k=experts, weights=weights,
                )  # fmt: skip
        plan.run(lambda: plan.fresh_model(values), None)


@app.command("distill", epilog=EXAMPLES_DISTILL)
def distill_command(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="What learns: a model with experts, by folder or name.")],
    text: Text,
    out: Out,
    teacher: Annotated[str, typer.Option(help="The dense model: name, folder or .gguf.")] = DEFAULT_MODEL,
    config: ConfigFile = None,
    steps: Steps = None,
    minutes: Minutes = None,
    batch: BatchSize = 32,
    micro_batch: MicroBatch = None,
    length: Length = 1024,
    rank: Rank = 0,
    gates: Annotated[str, _option(RUN, help="learned, or frozen: which experts a token gets is given.")] = "learned",
    dial: Annotated[
        float,
        _option(RUN, help="Share of the sequences at other mean numbers of experts, from half the target to all."),
    ] = 0.0,
    compile: Annotated[
        bool, _option(RUN, "--compile", help="Compiled kernels for whatever is not a product; needs a C++ compiler.")
    ] = False,
    masked: Annotated[
        bool, _option(RUN, "--masked", help="Compute all experts and weigh them: faster where experts are small.")
    ] = False,
    quantize: Annotated[
        str, _option(RUN, help="With --rank, int4 or int8: learn what is best once weights are rounded so; none.")
    ] = "none",
    lr: Annotated[float | None, _option(RUN, help="Peak learning rate. (default: 0.0002)", show_default=False)] = None,
    warmup: Warmup = 50,
    schedule: Schedule = "cosine",
    decay: Decay = 0.3,
    weight_decay: WeightDecay = 0.0,
    clip: Clip = 1.0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    parallel: Parallel = "replicate",
    seed: Seed = 0,
    anneal: Anneal = 0.4,
    held_out: HeldOut = 0.02,
    kl: Kl = 1.0,
    layers: Layers = 0.1,
    next_token: NextToken = 0.0,
    budget_loss: BudgetLoss = 0.0,
    save_every: SaveEvery = 500,
    keep: Keep = 2,
    log_every: LogEvery = 10,
    eval_every: EvalEvery = 0,
    eval_sequences: EvalSequences = 64,
    tensorboard: TensorBoard = False,
    cache: Cache = None,
) -> None:
    """Teach a converted model to say what its dense original says, while its experts become fewer."""
    from stille.train import open_world

    terms = {"kl": kl, "layers": layers, "next_token": next_token, "budget": budget_loss}
    with open_world(device) as world:
        plan = _Plan(world, _settings(ctx, config, world, terms), text, out, held_out, cache, tensorboard)
        plan.use_tokenizer(model)
        plan.run(lambda: plan.load(model, "fp32"), teacher, start=model)


def _settings(ctx: typer.Context, file: Path | None, world: World, loss: dict[str, float]) -> TrainConfig:
    """Defaults, then the file, then what the command line says."""
    import dataclasses

    from stille.train import LossWeights, TrainConfig
    from stille.train.config import read_json

    def given(name: str) -> bool:
        source = ctx.get_parameter_source(name)
        return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")

    names = {field.name for field in dataclasses.fields(TrainConfig)} & set(ctx.params)
    values = {name: ctx.params[name] for name in names if not given(name)}
    terms = {"next_token": 1.0, **loss} if "kl" not in loss else loss
    from_file = read_json(file) if file is not None else {}
    file_terms = from_file.pop("loss", {})
    values |= from_file | {name: ctx.params[name] for name in names if given(name)}
    if isinstance(file_terms, dict):
        option = {"kl": "kl", "layers": "layers", "next_token": "next_token", "budget": "budget_loss"}
        terms |= {name: value for name, value in file_terms.items() if not (name in option and given(option[name]))}
    if values["lr"] is None:
        values["lr"] = 2e-4
    if values["steps"] is None and values["minutes"] is None:
        values["steps"] = 1000
    if values["micro_batch"] is None:
        values["micro_batch"] = max(1, values["batch"] // world.size)
    if values["dtype"] == "auto":
        values["dtype"] = "bf16" if world.device.type == "cuda" else "fp32"
    values["loss"] = {**dataclasses.asdict(LossWeights()), **terms}
    return TrainConfig.from_dict(values)


class _Plan:
    """What both commands do around the loop."""

    def __init__(
        self,
        world: World,
        config: TrainConfig,
        text: list[Path],
        out: Path,
        held_out: float,
        cache: Path | None,
        tensorboard: bool,
    ):
        from stille.model.store import stille_home

        self.world, self.config, self.text, self.out = world, config, text, out
        self.held_out, self.tensorboard = held_out, tensorboard
        self.cache = cache or stille_home() / "tokens"
        self.tokenizer: Any = None

    def use_tokenizer(self, name: str) -> None:
        from stille.model.load import fetch
        from stille.model.tokenizer import load_tokenizer
        from stille.train import byte_tokenizer

        self.tokenizer = byte_tokenizer() if name == "bytes" else load_tokenizer(fetch(name, self.world.main))

    def fresh_model(self, values: dict[str, Any]) -> StilleForCausalLM:
        import torch

        from stille.model import StilleConfig, StilleForCausalLM

        values = {**values, "vocab_size": len(self.tokenizer), "eos_token_id": self.tokenizer.eos_token_id}
        torch.manual_seed(self.config.seed)
        return StilleForCausalLM(StilleConfig.from_dict(values))

    def load(self, name: str, dtype: str) -> StilleForCausalLM:
        from stille.model import load_model
        from stille.train.weights import DTYPES

        return load_model(name, dtype=DTYPES[dtype], device=self.world.device, progress=self.world.main).model

    def is_delta(self, name: str) -> bool:
        from stille.model.convert.delta import is_delta
        from stille.model.load import fetch

        return is_delta(fetch(name, False))

    def run(self, make_model: Callable[[], StilleForCausalLM], teacher: str | None, start: str | None = None) -> None:
        from transformers.utils.logging import disable_progress_bar

        from stille.train import prepare, train
        from stille.train.export import export, export_delta

        disable_progress_bar()

        world, config = self.world, self.config
        if world.main:  # the others find what it made
            prepare(self.text, self.tokenizer, self.cache, held_out=self.held_out)
        world.wait()
        store, held_out = prepare(self.text, self.tokenizer, self.cache, held_out=self.held_out)
        needs_teacher = teacher is not None and config.loss.needs_teacher
        with _bar(world.main) as on_step:
            result = train(
                make_model(), store, config, self.out, world=world, held_out=held_out, tensorboard=self.tensorboard,
                teacher=self.load(teacher, config.dtype) if needs_teacher and teacher is not None else None,
                on_step=on_step,
            )  # fmt: skip
        if not world.main:
            return
        about = f"{result.step} steps, {result.tokens:,} tokens, {result.seconds:.0f} s"
        if not result.finished:
            typer.echo(f"stopped after {about}; the same command goes on from there", err=True)
            raise typer.Exit(INTERRUPTED)
        if result.pairs is not None and start is not None and self.is_delta(start):
            about_run = {"steps": result.step, "tokens": result.tokens, "rank": config.rank, "dtype": config.dtype}
            export_delta(result, start, self.out / "model", about_run)
        else:
            export(result.model, self.tokenizer, self.out / "model")
        found = "".join(f", {name.replace('_', ' ')} {value:.4f}" for name, value in result.evaluation.items())
        typer.echo(f"{self.out / 'model'}: {about}{found}")


app.command("default", epilog=train_default.EXAMPLES)(train_default.command)
app.command("draft", epilog=train_draft.EXAMPLES)(train_draft.command)
app.command("sft", epilog=train_sft.EXAMPLES)(train_sft.command)
app.command("video", epilog=train_video.EXAMPLES)(train_video.command)


@contextlib.contextmanager
def _bar(shown: bool) -> Iterator[Callable[[Progress], None]]:
    """Progress on stderr; silent where that is no terminal."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    from stille.cli.download import stderr_console

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    columns += (TimeElapsedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=stderr_console(quiet=not (shown and sys.stderr.isatty()))) as bars:
        task = bars.add_task("training", total=1.0)

        def show(progress: Progress) -> None:
            facts = progress.metrics
            text = f"step {progress.step}"
            for name, label, form in (
                ("next_token", "loss", ".3f"),
                ("kl", "KL", ".4f"),
                ("mean_k", "k", ".2f"),
                ("tokens_per_second", "tok/s", ",.0f"),
            ):
                if name in facts and not (name == "next_token" and "kl" in facts):
                    text += f"  {label} {facts[name]:{form}}"
            bars.update(task, completed=progress.share, description=text)

        yield show
