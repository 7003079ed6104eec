"""A painted film as a camera, a process that watches it, and a real browser."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

RULES = """\
version: 1
timezone: Europe/Berlin

cameras:
  - name: hall   # over the gate

zones:
  - {name: gate, camera: hall, points: [[0.9, 0.0], [1.0, 0.0], [1.0, 0.1]]}   # nobody can get there

rules:
  - {id: gate-in, type: intrusion, zones: [gate]}
"""


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three seconds of people in a hall, the truth of it, and rules."""
    from stille.video.scenes.__main__ import write_film
    from stille.video.scenes.config import SceneConfig
    from stille.video.scenes.paint import paint

    folder, threads = tmp_path_factory.mktemp("film"), torch.get_num_threads()
    torch.set_num_threads(1)
    config = SceneConfig(difficulty=0.2, crowd=1.0, outdoor=0.0, rate=(10, 10), gap_chance=0.0, irregular=0.0)
    clips = paint(1, 30, (320, 176), 4, config=config)
    torch.set_num_threads(threads)
    write_film(folder / "hall.mp4", clips.frame_BTHW3[0].numpy(), 10)
    kind_M = clips.kind_BM[0].numpy()
    np.savez(
        folder / "truth.npz",
        kind=kind_M,
        box=clips.box_BTM4[0].numpy(),
        there=(clips.visible_BTM[0].numpy() > 0.15) & (kind_M >= 0),
        odds=np.nan_to_num(clips.attribute_BTMA[0].numpy() * 8 - 4),
    )
    (folder / "rules.yaml").write_text(RULES)
    return folder


@pytest.fixture
def browser():
    """Chromium without a window: Debian's, or the one that Playwright has fetched.

    Not kept for other tests: Playwright's event loop runs as long as it is open, and asyncio would refuse them another.
    """
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync.sync_playwright() as playwright:
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("there is no Chromium here: apt-get install chromium")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def hall(film: Path, tmp_path: Path):
    """Start watching: hall(*arguments) gives the folder and the page's address."""
    started: list[subprocess.Popen[str]] = []
    folder = tmp_path / "hall"
    shutil.copytree(film, folder)

    def start(*arguments: str) -> tuple[Path, str]:
        script = Path(__file__).with_name("hall.py")
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, f"it ended with {process.wait()}"
        return folder, url

    yield start
    for process in started:
        process.stdin.close()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.stdout.close()
