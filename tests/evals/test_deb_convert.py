"""The benchmark of converted models, on one that it makes itself."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "deb_convert.py"


@pytest.mark.slow
def test_all_figures_come_out_of_a_tiny_run(tmp_path):
    plot = tmp_path / "img" / "plot.svg"
    run = subprocess.run(
        [sys.executable, BENCHMARK, "--tiny", "--plot", plot],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    ids = {line.split()[0] for line in run.stdout.splitlines() if line.startswith("deb.")}
    wanted = "convert.kl convert.kl.absolute convert.kl.k4 convert.ppl.top3 convert.tasks convert.tasks.hellaswag"
    wanted += " convert.tasks.top3 balance.maxvio balance.maxvio.batch balance.dead balance.mean_k"
    wanted += " balance.mean_k.legal balance.mean_k.chat.layer balance.k_entropy.high balance.k_share.few"
    assert {f"deb.{name}" for name in wanted.split()} <= ids
    (all_experts,) = [line for line in run.stdout.splitlines() if line.startswith("deb.convert.kl.k4 ")]
    assert float(all_experts.split()[1]) < 1e-4  # untrained: all experts are the dense model
    assert "</svg>" in plot.read_text()


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["--deb", "a"], "--twin"),
        (["--tiny", "--json", "a.json"], "records nothing"),
        (["--deb", "a", "--twin", "b", "--text", "c", "--domain", "d"], "NAME=FILE"),
    ],
)
def test_what_is_missing_is_said(monkeypatch, capsys, arguments, mentions):
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(BENCHMARK), run_name="__main__")
    assert end.value.code == 2
    assert mentions in capsys.readouterr().err
