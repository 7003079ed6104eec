"""Synthetic warehouses: layouts, what happens in them, and pictures with exact truth.

`make_clips` renders them (on a GPU inside a training step), `paint` does so on a CPU for tests and demos.
"""

from stille.video.scenes.clips import Clips
from stille.video.scenes.config import LAYOUTS, SceneConfig
from stille.video.scenes.draw import clip_seeds
from stille.video.scenes.graph import Scenes, build_scenes
from stille.video.scenes.make import make_clips
from stille.video.scenes.paint import Painter, paint

__all__ = ["LAYOUTS", "Clips", "Painter", "SceneConfig", "Scenes", "build_scenes", "clip_seeds", "make_clips", "paint"]
