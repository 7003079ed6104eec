"""When the frames of a clip are taken."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stille.video.scenes.config import SceneConfig
from stille.video.scenes.draw import Draw


def sample_times(draw: Draw, config: SceneConfig, frames: int) -> tuple[Tensor, Tensor]:
    """What the clock says of each frame, and the moment that the frame shows: float64 [B, T] each, from 0.

    They differ where a frame is repeated: the clock goes on, picture and truth stay. A dropped frame leaves a longer
    step. A gap lies before the middle frame.
    """
    low, high = (math.log(rate) for rate in config.rate)
    step_B1 = torch.exp(-draw.uniform("rate", 1, low=low, high=high)).double()
    wild_B1 = draw.chance("irregular", 1, p=0.3).double() * config.irregular
    index_T = torch.arange(frames, device=draw.device)
    dropped_BT = draw.chance("dropped", frames, p=wild_B1) & (index_T > 0)
    steps_BT = step_B1 * (1 + dropped_BT.double()) * (index_T > 0)
    gap_B1 = draw.uniform("gap", 1, low=config.gap[0], high=config.gap[1]).double()
    gap_B1 = gap_B1 * draw.chance("has gap", 1, p=config.gap_chance)
    middle_T = (index_T == frames // 2) & (index_T > 0)
    time_BT = (steps_BT + gap_B1 * middle_T).cumsum(1)
    repeated_BT = draw.chance("repeated", frames, p=wild_B1) & (index_T > 0) & ~middle_T
    kept_BT = torch.where(repeated_BT, 0, index_T).cummax(1).values  # the last frame that was new
    return time_BT, time_BT.gather(1, kept_BT)
