"""The perception model: frames of many cameras in, objects with identities out.

>>> from stille.video.model import StilleCam
>>> seen = StilleCam(load(folder)).see(frames)
"""

from stille.video.model.abreast import Abreast
from stille.video.model.camera import StilleCam, resized
from stille.video.model.config import BASE, PRESETS, TINY, StilleCamConfig
from stille.video.model.memory import with_long_memory
from stille.video.model.network import StilleCamNet, flops_per_frame
from stille.video.model.store import begin, config_of, load, save

__all__ = [
    "BASE",
    "PRESETS",
    "TINY",
    "Abreast",
    "StilleCam",
    "StilleCamConfig",
    "StilleCamNet",
    "begin",
    "config_of",
    "flops_per_frame",
    "load",
    "resized",
    "save",
    "with_long_memory",
]
