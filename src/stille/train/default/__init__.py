"""The default model, made by one pipeline of stages that are kept: `stille train default`.

>>> from stille.train.default import STAGES, DefaultSettings, make
"""

from collections.abc import Callable
from pathlib import Path

from stille.errors import ConfigError
from stille.model.load import load_config
from stille.train.default import card, judge, making, samples
from stille.train.default.settings import DEVICES, DefaultSettings
from stille.train.default.stages import Context, Pipeline, Progress, Stage, Status, Stopped

__all__ = ["STAGES", "Context", "DefaultSettings", "Pipeline", "Progress", "Stage", "Status", "Stopped", "make"]

STAGES = (
    Stage("samples", 1, samples.inputs, samples.run, about="text that the dense model writes, and local text",
          kept=(samples.SAMPLES, samples.HELD_OUT, samples.LIBRARY, samples.LIBRARY_HELD_OUT)),
    Stage("convert", 1, making.convert_inputs, making.convert, ("samples",), "the dense model split into experts",
          kept=(making.DELTA,)),
    Stage("distill", 1, making.distill_inputs, making.distill, ("samples", "convert"), "taught by the dense model",
          kept=(making.MODEL, making.METRICS)),
    Stage("judge", 1, judge.inputs, judge.run, ("samples", "distill"), "held against the dense model"),
    Stage("delta", 1, card.inputs, card.run, ("samples", "convert", "distill", "judge"), "the folder with its card"),
)  # fmt: skip
"""In the order in which they run."""


def make(
    out: Path,
    settings: DefaultSettings,
    device: str = "cpu",
    *,
    only: str | None = None,
    until: str | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
    quiet: bool = False,
) -> Path | None:
    """Run the pipeline, or go on with it; see `Pipeline.run`.

    Returns:
        The folder of the finished delta, `out / settings.result_name`; None if its stage did not run to the end.

    Raises:
        ConfigError: settings that do not fit, an unknown stage, or an unknown device.
        Stopped: SIGINT came; what is there is kept.
    """
    done = pipeline(out, settings, device).run(only=only, until=until, report=report, quiet=quiet)
    return card.place(done["delta"], out, settings.result_name) if "delta" in done else None


def pipeline(out: Path, settings: DefaultSettings, device: str = "cpu") -> Pipeline:
    """The stages in a folder, with settings filled in for the device.

    Raises:
        ConfigError: settings that do not fit the base or each other, or a file that cannot be read.
    """
    if device not in DEVICES:
        raise ConfigError(f"device {device!r}, expected {' or '.join(DEVICES)}.")
    settings = settings.filled(device)
    _check(settings)
    return Pipeline(STAGES, out, settings, device)


def _check(settings: DefaultSettings) -> None:
    """What would fail in a late stage fails before the first."""
    base = load_config(samples.base_of(settings), progress=False)
    conversion = settings.conversion()
    conversion.experts(conversion.layout(base.intermediate_size))
    if settings.training().length > base.max_position_embeddings:
        raise ConfigError(f"length={settings.length} exceeds the base's context of {base.max_position_embeddings}.")
    for stage in STAGES:
        stage.inputs(settings)
