"""The benchmark's last step: answers of several runs, combined to records."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from stille import ledger
from stille.evals.protocol import Answer, AnswerStore, describe
from stille.evals.ruler import Sample
from stille.evals.settings import Setting

ROOT = Path(__file__).resolve().parents[2]
SCORES = {"full": {"vt": [1, 1, 1, 1], "cwe": [0, 0, 0, 1]}, "hsa:2048": {"vt": [1, 1, 1, 0], "cwe": [0, 0, 0, 0]}}


def keep(file: Path, name: str, scores: dict[str, list[float]], **extra: str) -> None:
    about = {"model": "m", "code": "c", **extra, **Setting.parse(name).as_dict()}
    rows = [
        (Sample(task, 8192, i, [i], ["x"], 1), Answer(task, 8192, i, "", float(score)))
        for task, given in scores.items()
        for i, score in enumerate(given)
    ]
    AnswerStore(file).add(describe(**about), rows)


def combine(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "benchmarks" / "hsa_ruler.py", "--combine", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_runs_are_combined_to_a_record(tmp_path):
    keep(tmp_path / "a.jsonl", "full", SCORES["full"])
    keep(tmp_path / "b.jsonl", "hsa:2048", {"vt": [0, 0, 0, 0], "cwe": [1, 1, 1, 1]}, code="an older one")
    keep(tmp_path / "b.jsonl", "hsa:2048", SCORES["hsa:2048"])
    done = combine(tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    assert "replace the earlier ones" in done.stdout
    (record,) = ledger.read(tmp_path / "out.json")
    assert (record.id, record.value, record.goal, record.met) == ("hsa.ruler.8k", 0.75, "value >= 0.997", False)
    assert "vt 100.0 to 75.0" in record.notes
    assert "Below 98 % retention: vt" in record.notes
    assert "cwe (full 25%)" in record.notes
    assert "budget 2048" in record.notes


@pytest.mark.parametrize("trouble", ["two models", "no hsa", "another setting"])
def test_what_cannot_be_compared_is_no_record(tmp_path, trouble, monkeypatch, capsys):
    out = tmp_path / "out.json"
    keep(tmp_path / "a.jsonl", "full", SCORES["full"])
    if trouble != "no hsa":
        keep(tmp_path / "a.jsonl", "hsa:2048", SCORES["hsa:2048"], model="m" if trouble != "two models" else "n")
    more = ["--record", "hsa:1024"] if trouble == "another setting" else []
    arguments = [ROOT / "benchmarks" / "hsa_ruler.py", "--combine", tmp_path / "a.jsonl", "--json", out, *more]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    with pytest.raises(SystemExit) as end:  # an error that is not explained would come through
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert not out.exists()
    expected = {"two models": "2 models", "no hsa": "nothing to compare", "another setting": "hsa:1024"}
    assert expected[trouble] in f"{end.value.code}{''.join(capsys.readouterr())}"
