"""`stille watch --page`: the command serves the page, stays when its recordings are over, and ends by a signal."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from stille.video.model import TINY, StilleCamNet, save
from stille.video.scenes.__main__ import write_film

PASSWORD = "correct horse battery"


def ask(url: str, token: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_the_page_of_a_watch(tmp_path):
    write_film(tmp_path / "hall.mp4", np.random.default_rng(0).integers(60, 200, (20, 96, 160, 3), dtype=np.uint8), 10)
    (tmp_path / "rules.yaml").write_text("cameras: [{name: hall}]\nrules: [{id: trouble, type: camera_trouble}]\n")
    save(StilleCamNet(TINY), tmp_path / "model", "# A network that has learned nothing")
    watch = [sys.executable, "-m", "stille.cli", "watch", f"{tmp_path / 'hall.mp4'}#name=hall", "--device", "cpu",
             "--rules", tmp_path / "rules.yaml", "--model", tmp_path / "model", "--out", tmp_path / "out",
             "--page", "0", "--page-password", PASSWORD]  # fmt: skip
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(watch, stderr=subprocess.PIPE, text=True, env=one_thread)
    try:
        told, found = "", None
        while found is None and (line := process.stderr.readline()):
            told, found = told + line, re.search(r"page: (\S+)", line)
        assert found is not None, told
        url = found[1]
        assert ask(f"{url}/health")[0] == 401
        end = time.monotonic() + 100
        while json.loads(ask(f"{url}/health", PASSWORD)[1])["cameras"]["hall"]["seen"] < 20:
            assert time.monotonic() < end
            time.sleep(0.1)
        for path in ("", "events", "timeline", "zones", "ask", "cameras"):
            status, page = ask(f"{url}/{path}", PASSWORD)
            assert (status, "Stille" in page) == (200, True)
        status, told = ask(f"{url}/events/../../etc/passwd", PASSWORD)
        assert status in (404, 422)
        assert "root:" not in told
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--page", "0", "--page-host", "0.0.0.0"), "STILLE_PAGE_PASSWORD"),
        (("--page", "0", "--page-password", "short"), "expected 12 or more"),
    ],
)
def test_an_open_page_is_refused(tmp_path, arguments, told, monkeypatch, capfd):
    from stille.cli import main

    (tmp_path / "rules.yaml").write_text("cameras: [{name: hall}]\n")
    given = ["stille", "watch", "x.mp4", "--rules", str(tmp_path / "rules.yaml"), "--model", "none", *arguments]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert told in capfd.readouterr().err
