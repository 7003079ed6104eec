"""Ways through the hall as functions of time: nodes with waits, evaluated at any moment.

No simulation step: a clip may be sampled at any rate and with gaps. Corners, starts and stops are made smooth by the
mean over a short window of time.

Shapes: B clips, N movers, K nodes, T moments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stille.video.scenes.draw import constant

_WINDOW_S = (-0.5, -0.25, 0.0, 0.25, 0.5)


@dataclass(frozen=True, slots=True)
class Path:
    """
    Attributes:
        node_BNK2: metres.
        arrive_BNK, leave_BNK: seconds; leave[k] <= arrive[k + 1].
        going_BNK2: unit vector that the mover faces on its way to node k; standing_BNK2: while it waits there.
        lift_BNK2: height of forks on arrival and on leaving.
    """

    node_BNK2: Tensor
    arrive_BNK: Tensor
    leave_BNK: Tensor
    going_BNK2: Tensor
    standing_BNK2: Tensor
    lift_BNK2: Tensor

    def of(self, index_BN: Tensor, later_BN: Tensor, aside_BN2: Tensor) -> Path:
        """For each mover the way of another, later and some metres aside."""

        def take(value: Tensor) -> Tensor:
            shape = index_BN.shape + (1,) * (value.dim() - 2)
            return value.gather(1, index_BN.view(shape).expand(-1, -1, *value.shape[2:]))

        later = later_BN[..., None]
        return Path(
            take(self.node_BNK2) + aside_BN2[:, :, None], take(self.arrive_BNK) + later, take(self.leave_BNK) + later,
            take(self.going_BNK2), take(self.standing_BNK2), take(self.lift_BNK2),
        )  # fmt: skip

    def shifted(self, later_BN: Tensor) -> Path:
        """The same way, later."""
        later = later_BN[..., None]
        return Path(
            self.node_BNK2, self.arrive_BNK + later, self.leave_BNK + later,
            self.going_BNK2, self.standing_BNK2, self.lift_BNK2,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moving:
    """Where movers are.

    Attributes:
        place_BTN2: metres; heading_BTN2: unit vector; speed_BTN: m/s; walked_BTN: metres since the way began;
            lift_BTN: height of forks.
    """

    place_BTN2: Tensor
    heading_BTN2: Tensor
    speed_BTN: Tensor
    walked_BTN: Tensor
    lift_BTN: Tensor


def timed(
    node_BNK2: Tensor,
    wait_BNK: Tensor,
    speed_BNK: Tensor,
    *,
    backwards_BNK: Tensor | None = None,
    standing_BNK2: Tensor | None = None,
    lift_BNK2: Tensor | None = None,
) -> Path:
    """A way that begins with the wait at its first node at second 0.

    Args:
        speed_BNK: m/s on the way to node k.
        backwards_BNK: whether the mover drives to node k in reverse.
        standing_BNK2: what it faces at node k; nan where it keeps the direction that it came in.
    """
    step_BNK2 = torch.diff(node_BNK2, dim=2, prepend=node_BNK2[:, :, :1])
    length_BNK = step_BNK2.norm(dim=-1)
    leave_BNK = (length_BNK / speed_BNK + wait_BNK).cumsum(-1)
    arrive_BNK = leave_BNK - wait_BNK
    going = step_BNK2 / length_BNK.clamp(min=1e-6)[..., None]
    # A step of no length keeps the direction of the one before it; the first ones take that of the next.
    steps = list(going.unbind(2))
    known = list((length_BNK > 1e-3).unbind(2))
    for order in (range(1, len(steps)), range(len(steps) - 2, -1, -1)):
        for k in order:
            other = k - order.step
            take = ~known[k] & known[other]
            steps[k] = torch.where(take[..., None], steps[other], steps[k])
            known[k] = known[k] | take
    going = torch.where(torch.stack(known, 2)[..., None], torch.stack(steps, 2), constant((1.0, 0.0), step_BNK2.device))
    if backwards_BNK is not None:
        going = torch.where(backwards_BNK[..., None], -going, going)
    standing = going if standing_BNK2 is None else torch.where(standing_BNK2.isnan(), going, standing_BNK2)
    lift = torch.zeros_like(node_BNK2) if lift_BNK2 is None else lift_BNK2
    return Path(node_BNK2, arrive_BNK, leave_BNK, going, standing, lift)


def follow(path: Path, moment_BT: Tensor) -> Moving:
    """Where the movers are at these moments (seconds on the paths' clock)."""
    b, n, k = path.arrive_BNK.shape
    window = constant(_WINDOW_S, moment_BT.device)
    when = (moment_BT[:, :, None] + window).reshape(b, 1, -1).expand(-1, n, -1).contiguous()
    nxt = torch.searchsorted(path.leave_BNK.contiguous(), when).clamp(max=k - 1)
    before = (nxt - 1).clamp(min=0)

    def at(value: Tensor, index: Tensor) -> Tensor:
        if value.dim() == 4:
            return value.gather(2, index[..., None].expand(-1, -1, -1, value.shape[-1]))
        return value.gather(2, index)

    begin, end, until = at(path.leave_BNK, before), at(path.arrive_BNK, nxt), at(path.leave_BNK, nxt)
    share = ((when - begin) / (end - begin).clamp(min=1e-4)).clamp(0, 1)
    share = torch.where(nxt == 0, 1.0, share)
    origin, target = at(path.node_BNK2, before), at(path.node_BNK2, nxt)
    place = origin + (target - origin) * share[..., None]
    waiting = when >= end
    facing = torch.where(waiting[..., None], at(path.standing_BNK2, nxt), at(path.going_BNK2, nxt))
    lift_in, lift_out = at(path.lift_BNK2, nxt).unbind(-1)
    waited = ((when - end) / (until - end).clamp(min=1e-4)).clamp(0, 1)
    lift_on_way = at(path.lift_BNK2, before)[..., 1]
    lift = torch.where(waiting, lift_in + (lift_out - lift_in) * waited, lift_on_way + (lift_in - lift_on_way) * share)
    length = torch.diff(path.node_BNK2, dim=2, prepend=path.node_BNK2[:, :, :1]).norm(dim=-1)
    walked = at(length.cumsum(-1), nxt) - at(length, nxt) * (1 - share)

    def windows(value: Tensor) -> Tensor:
        return value.reshape(b, n, -1, len(_WINDOW_S), *value.shape[3:])

    place, facing, walked = windows(place), windows(facing), windows(walked)
    heading = facing.mean(3)
    across = torch.stack([-facing[:, :, :, 2, 1], facing[:, :, :, 2, 0]], -1)
    heading = heading + 0.05 * across  # so that turning round has a side
    heading = heading / heading.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    speed = (walked[..., -1] - walked[..., 0]) / (_WINDOW_S[-1] - _WINDOW_S[0])
    return Moving(
        place.mean(3).transpose(1, 2), heading.transpose(1, 2), speed.transpose(1, 2),
        walked.mean(3).transpose(1, 2), windows(lift).mean(3).transpose(1, 2),
    )  # fmt: skip
