"""`stille train video`: mistakes and messages."""

from stille.video.model import BASE, StilleCamNet, save


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
