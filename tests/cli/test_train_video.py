"""`stille train video`: mistakes and messages."""

import json
from dataclasses import replace

from stille.video.model import BASE, TINY, StilleCamNet, save


def test_training_goes_on_with_weights_of_the_same_sizes_only(stille_here, tmp_path):
    save(StilleCamNet(BASE), tmp_path / "base", "")
    run = stille_here(
        "train", "video", "--preset", "tiny", "--from", tmp_path / "base", "--out", tmp_path / "out", "--steps", "1"
    )
    assert run.returncode == 2
    assert "does not fit the network that is to begin with it" in run.stderr
    assert not (tmp_path / "out").exists()
    missing = stille_here("train", "video", "--from", tmp_path / "no", "--out", tmp_path / "out", "--steps", "1")
    assert "no folder of a StilleCam" in missing.stderr


def test_training_goes_on_with_the_sizes_of_what_it_begins_with(stille_here, tmp_path):
    begun = replace(TINY, backbone="coco", history=False, shown=0.55)
    save(StilleCamNet(begun), tmp_path / "begun", "")
    save(StilleCamNet(TINY), tmp_path / "other", "")
    run = stille_here(
        "train", "video", "--from", tmp_path / "begun", "--from", tmp_path / "other", "--out", tmp_path / "out",
        "--steps", "1", "--batch", "1", "--frames", "2", "--detect-batch", "1", "--detect-frames", "1",
        "--eval-clips", "1", "--device", "cpu",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    made = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert (made["backbone"], made["history"], made["width"]) == ("coco", False, TINY.width)
