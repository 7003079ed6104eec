"""`stille train draft`, from prompts to a head that fits the model; stopped and continued."""

import json
import signal
import time

import pytest
import torch

from stille.model import load_model
from stille.model.draft import DraftHead

SMALL = ["--layers", "1", "--inner", "32", "--vocab", "128", "--batch-tokens", "128", "--warmup", "2", "--lr", "0.003"]
TEXT = ["--tokens", "800", "--answer-tokens", "12", "--shard", "12", "--held-out", "0.3", "--unroll", "3"]
CPU = ["--device", "cpu", "--threads", "1"]


@pytest.fixture
def prompts(tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"the fox, number {n}"}], "domain": "chat"} for n in range(30)]
    rows += [{"text": f"{n} the quick brown fox jumps over the lazy dog " * 3, "domain": "prose"} for n in range(12)]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_from_prompts_to_a_head(stille_here, tiny_checkpoint, prompts, tmp_path):
    out, asked = tmp_path / "made", ["train", "draft", "--model", tiny_checkpoint, *SMALL, *TEXT, *CPU]
    for part in ("0/2", "1/2"):
        run = stille_here(*asked, "--out", out, "--prompts", prompts, "--only", "text", "--part", part)
        assert run.returncode == 0, run.stderr
    assert not (out / "draft").exists()
    run = stille_here(*asked, "--out", out, "--only", "train", "--steps", "8")
    assert run.returncode == 0, run.stderr
    assert "temperature 0" in run.stdout
    assert "| chat |" in run.stdout
    head = DraftHead.load(out / "draft", load_model(tiny_checkpoint, progress=False).model)
    assert (head.config.inner_size, head.config.steps, head.config.draft_vocab) == (32, 3, 128)
    report = json.loads((out / "report.json").read_text())
    assert report["steps"] == 8
    assert report["text"]["documents"] > report["text"]["held_out_documents"] > 0
    assert {"trained", "stored"} <= set(report)
    assert 1 <= report["stored"]["all"]["sampled"]["tau"] <= 4
    again = stille_here(*asked, "--out", out, "--only", "train", "--steps", "9")
    assert again.returncode == 2
    assert "holds another run: its settings differ" in again.stderr
    other = stille_here(
        *asked, "--out", tmp_path / "other", "--text", out / "text", "--steps", "2", "--precision", "bf16"
    )
    assert other.returncode == 0, other.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_goes_on(stille_here, spawn, tiny_checkpoint, prompts, tmp_path):
    out = tmp_path / "made"
    asked = ["train", "draft", "--model", tiny_checkpoint, *SMALL, *TEXT, *CPU, "--steps", "400", "--prompts", prompts]
    process = spawn(*map(str, asked), "--out", str(out))
    deadline = time.monotonic() + 100
    while not (out / "run" / "metrics.jsonl").exists() or not (out / "run" / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130, told
    assert "goes on from there" in told
    assert not (out / "draft").exists()
    state = torch.load(next((out / "run" / "checkpoints").glob("*.pt")), weights_only=True)
    assert 0 < state["step"] < 400
    run = stille_here(*asked, "--out", out)
    assert run.returncode == 0, run.stderr
    assert json.loads((out / "report.json").read_text())["steps"] == 400


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "holds no text yet: give --prompts"),
        (["--part", "2"], "expected P/N"),
        (["--features", "a,b"], "expected numbers of layers"),
        (["--only", "draft"], "is unknown"),
        (["--precision", "int3"], "is unknown"),
        (["--prompts", "absent.jsonl"], "cannot be read"),
    ],
)
def test_what_cannot_be_done_is_told(stille_here, tmp_path, options, told):
    run = stille_here("train", "draft", "--out", tmp_path / "made", *CPU, *options)
    assert run.returncode == 2
    assert told in " ".join(run.stderr.replace("│", " ").split())
