"""Rendered clips with their truth, as training and measuring take them.

Shapes: B clips, T frames, H, W picture, M places for objects (the same place is the same object in all of a clip), A
attributes, S rack slots.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Clips:
    """
    Attributes:
        frame_BTHW3: uint8 RGB.
        time_BT: float64, seconds from the beginning of the clip.
        kind_BM: int64, numbers of `stille.video.types.KINDS`; -1 where there is no object.
        box_BTM4: float32, x0, y0, x1, y1 in 0..1 of the picture, of the whole object, hidden parts included, cut at the
            picture's edge; 0 where nothing of it is in the picture.
        visible_BTM: float32, share of the object's extent (beyond the edge as well) that is seen; 0 where it is hidden,
            outside, or not there.
        attribute_BTMA: float32, 1, 0, or nan where the attribute does not apply or cannot be known.
        place_BTM2: float32, where the object stands on the floor, metres; nan where there is none.
        slot_BS4: float32, boxes of rack slots in 0..1 of the picture; 0 where there is none.
        occupied_BTS: float32, 1 or 0; nan where there is no slot.
    """

    frame_BTHW3: Tensor
    time_BT: Tensor
    kind_BM: Tensor
    box_BTM4: Tensor
    visible_BTM: Tensor
    attribute_BTMA: Tensor
    place_BTM2: Tensor
    slot_BS4: Tensor
    occupied_BTS: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, T, H, W."""
        b, t, h, w, _ = self.frame_BTHW3.shape
        return b, t, h, w
