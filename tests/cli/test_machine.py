"""`stille doctor`, `stille bench` and `stille pull`."""

import json

import pytest

from stille.cli import machine


def test_doctor_reports_facts(stille, tmp_path):
    run = stille("doctor", "--json", env={"STILLE_HOME": str(tmp_path / "empty" / "home")})
    report = json.loads(run.stdout)
    assert run.returncode == 0, run.stderr
    assert set(report) == {"hardware", "software", "caches", "findings"}
    assert report["software"]["torch"]
    assert report["caches"]["stille-135m"] == "not downloaded"
    (note,) = [finding for finding in report["findings"] if finding["level"] == "note"]
    assert note["fix"] == "stille pull"
    assert not (tmp_path / "empty").exists()  # looking changes nothing


def test_doctor_prints_the_same_for_people(stille_here):
    run = stille_here("doctor")
    assert run.returncode == 0
    assert all(title in run.stdout for title in ("hardware", "software", "caches"))


@pytest.mark.parametrize(
    ("features", "level", "mentions"),
    [
        (["avx2", "fma", "avx512f", "avx512_vnni"], "fast", "AVX-512"),
        (["avx2", "fma"], "slow", "AVX2"),
        (["asimd"], "slow", "ARM"),
        ([], "slow", "no AVX2"),
    ],
)
def test_findings_follow_from_the_cpu(features, level, mentions):
    hardware = {"cpu features": features, "gpu": []}
    software = dict.fromkeys((*machine.SERVE_PACKAGES, *machine.OPTIONAL_PACKAGES), "1.0")
    findings = machine.findings(hardware, software, {"stille-135m": "/somewhere"})
    assert any(finding["level"] == level and mentions in finding["text"] for finding in findings)
    assert not any(finding["level"] == "missing" for finding in findings)


def test_a_missing_package_comes_with_its_command():
    software = dict.fromkeys((*machine.SERVE_PACKAGES, *machine.OPTIONAL_PACKAGES), "1.0") | {"fastapi": None}
    findings = machine.findings({"cpu features": [], "gpu": []}, software, {"stille-135m": "/somewhere"})
    (missing,) = [finding for finding in findings if finding["level"] == "missing"]
    assert "fastapi" in missing["text"]
    assert missing["fix"].startswith("pip install")


def test_bench_measures(stille, tiny):
    sizes = ["--prompt-tokens", "64", "--output-tokens", "16", "--batch", "1", "--batch", "3", "--repeats", "1"]
    run = stille("bench", "--json", *tiny, *sizes)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert (result["dtype"], result["device"], result["threads"]) == ("fp32", "cpu", 1)
    names = [row["name"] for row in result["measures"]]
    assert names == ["prefill, 64 tokens", "time to first token, 64 tokens", "decode, batch 1", "decode, batch 3"]
    assert all(0 < row["low"] <= row["value"] <= row["high"] for row in result["measures"])


def test_pull_prints_where_a_folder_is(stille_here, tiny_checkpoint):
    run = stille_here("pull", tiny_checkpoint)
    assert run.returncode == 0
    assert run.stdout == f"{tiny_checkpoint}\n"


def test_pull_without_a_network_says_what_to_place_where(stille_here, tmp_path, monkeypatch):
    monkeypatch.setenv("STILLE_HOME", str(tmp_path))
    run = stille_here("pull", "--offline")
    assert run.returncode == 2
    assert str(tmp_path) in run.stderr
    assert "sha256" in run.stderr
