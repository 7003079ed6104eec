"""Two processes on this machine compute what one does: replicated and with FSDP2, stopped and resumed on the way."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).with_name("ranks.py")
RUNS = {
    "low-rank": ("pretrain", "fp32", "replicate", 2),
    "distill-fsdp": ("distill", "fp32", "fsdp", 0),
}
MORE = {
    "pretrain": ("pretrain", "fp32", "replicate", 0),
    "pretrain-fsdp-bf16": ("pretrain", "bf16", "fsdp", 0),
}


@pytest.fixture(scope="module")
def ends(tmp_path_factory, make_model, store, request):
    """{processes: {run: (lines of metrics, end)}}."""
    runs = RUNS | (MORE if request.config.getoption("--slow") else {})
    found = {}
    for count in (1, 2):
        out = tmp_path_factory.mktemp(f"ranks{count}")
        plan = dict(
            documents=[row.tolist() for row in np.split(store.tokens, store.starts[1:])],
            model=make_model().config.to_dict(), out=str(out), runs=runs,
            config=dict(steps=6, batch=8, micro_batch=2, length=32, lr=3e-3, warmup=2, anneal=0.4, log_every=1),
        )  # fmt: skip
        (out / "plan.json").write_text(json.dumps(plan))
        if count == 1:
            runpy.run_path(str(SCRIPT))["main"](out / "plan.json")
        else:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [*launch, SCRIPT, out / "plan.json"], capture_output=True, text=True, env=env, timeout=150
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-4000:]
        found[count] = {
            name: (
                [json.loads(line) for line in (out / name / "metrics.jsonl").read_text().splitlines()],
                torch.load(out / name / "end.pt"),
            )
            for name in runs
        }
    return found


@pytest.mark.parametrize("name", [*RUNS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_two_ranks_equal_one(ends, name):
    (alone, end), (together, end2) = ends[1][name], ends[2][name]
    assert [row["step"] for row in together] == [1, 2, 3, 4, 5, 6, 6]
    loose = 2e-2 if "bf16" in name else 1e-4
    for mine, theirs in zip(alone[:-1], together[:-1], strict=True):
        for key in ("next_token", "grad_norm", "mean_k", *(["kl", "layers"] if "distill" in name else [])):
            assert theirs[key] == pytest.approx(mine[key], rel=loose), key
    assert end["evaluation"] == pytest.approx(end2["evaluation"], rel=loose)
    for key, value in end["model"].items():
        torch.testing.assert_close(end2["model"][key], value, rtol=loose, atol=loose)
    first, second = (ends[1][run][1]["model"]["lm_head.weight"] for run in RUNS)
    assert not torch.equal(first, second)
