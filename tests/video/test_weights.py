"""Where a perception's weights are found."""

from __future__ import annotations

import pytest

from stille.errors import ModelNotFoundError
from stille.video import weights
from stille.video.model import TINY, StilleCamNet, load, save


def test_by_name_by_folder_and_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "BUNDLED", tmp_path)
    (tmp_path / "a-decoder").mkdir()
    (tmp_path / "a-decoder" / "config.json").write_text('{"model_type": "stille"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("[")
    with pytest.raises(ModelNotFoundError, match="stille train video"):
        weights.find()
    save(StilleCamNet(TINY), tmp_path / "cam", "# A network")
    assert weights.find() == weights.find("cam") == weights.find(tmp_path / "cam") == tmp_path / "cam"
    assert load(weights.find()).config == TINY
    with pytest.raises(ModelNotFoundError, match=r"'nothing' is no folder of a StilleCam.*came with this version: cam"):
        weights.find("nothing")
