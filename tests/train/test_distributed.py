"""Two processes on this machine compute what one does: replicated and with FSDP2, stopped and resumed on the way."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.processes import WarmProcess
from tests.train.ranks import main

RUNS = {
    "low-rank": ("pretrain", "fp32", "replicate", 2),
    "distill-fsdp": ("distill", "fp32", "fsdp", 0),
}
MORE = {
    "pretrain": ("pretrain", "fp32", "replicate", 0),
    "pretrain-fsdp-bf16": ("pretrain", "bf16", "fsdp", 0),
}


def launch(plan: Path, count: int) -> None:
    """`main` in so many processes, which get from their environment what torchrun puts there."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    own = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    ranks = [WarmProcess(main, plan, env={**os.environ, **shared, **each}) for each in own]
    try:
        with ThreadPoolExecutor(count) as pool:
            told = list(pool.map(lambda rank: rank.communicate(timeout=150)[1], ranks))
        assert [rank.returncode for rank in ranks] == [0] * count, "\n".join(text[-4000:] for text in told)
    finally:
        for rank in ranks:
            rank.close()


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
            main(out / "plan.json")
        else:
            launch(out / "plan.json", count)
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
