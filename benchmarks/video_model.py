"""The perception model's cost: frames per second by batch, what each kind of long memory costs, memory of training.

    python benchmarks/video_model.py                      # about three minutes on a quiet machine, CPU or GPU
    python benchmarks/video_model.py --json results.json
    python benchmarks/video_model.py --busy --rounds 1    # on a machine in use: a first idea, nothing is recorded

The package's model untrained, 640x352, random pictures; every camera's memory is filled, and all objects count as seen,
so that nothing is skipped. Outputs are checked first: cameras together as each alone, streams as whole clips. On a CPU,
times are processor seconds of one thread: a machine in use changes them less than the clock's.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stille.ledger import Record, measure, render_table, write
from stille.video.model import PRESETS, StilleCam, StilleCamConfig, StilleCamNet, flops_per_frame, with_long_memory
from stille.video.model.camera import default_dtype
from stille.video.model.config import LONG_MEMORIES
from stille.video.scenes.clips import Clips
from stille.video.training import VideoTrainConfig
from stille.video.training.step import clip_loss, look
from stille.video.types import ATTRIBUTES, Frame

COMMAND = "python benchmarks/video_model.py"
SHAPE = replace(PRESETS["coco"], history=False)  # of the weights in the package
SEEN = replace(SHAPE, shown=0.0, born=0.0, carry=0.0)


class Failure(Exception):
    """An output is wrong."""


def network(config: StilleCamConfig) -> StilleCamNet:
    """Untrained, but pictures reach the maps, and queries differ."""
    torch.manual_seed(0)
    net = StilleCamNet(config)
    for module in net.backbone.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.nn.init.normal_(net.decoder.presence.weight, std=0.1)
    return net.eval()


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SHAPE.height, SHAPE.width, 3), np.uint8)


def frames(cameras: int, step: int) -> list[Frame]:
    images = pictures(cameras, step)
    return [Frame(f"c{i}", step, 0.5 * step, 0.0, images[i]) for i in range(cameras)]


def check(device: torch.device) -> None:
    """Two cameras together and alone, and streamed against the pass that training takes, in float32."""
    together, alone = (StilleCam(network(SEEN), device, torch.float32) for _ in range(2))
    stills = [torch.from_numpy(np.stack([f.image_HW3 for f in frames(2, t)])) for t in range(2)]
    with torch.no_grad():
        said, _, _ = look(network(SEEN).to(device), _clips(torch.stack(stills, 1)).frames_on(device), 100)
    score = said.presence_LBTQ[-1].sigmoid().topk(SEEN.carried).values.cpu().numpy()
    for t in range(2):
        now = frames(2, t)
        pair, single = together.see(now), [alone.see([frame])[0] for frame in now]
        for i in range(2):
            worst = max(
                np.abs(pair[i].score_N - single[i].score_N).max(),
                np.abs(pair[i].box_N4 - single[i].box_N4).max() / 640,
                np.abs(pair[i].score_N - score[i, t]).max(),
            )  # fmt: skip
            print(f"check  frame {t} of camera {i}: together, alone and clip-wise differ by {worst:.1e}", flush=True)
            if not worst < 2e-3:
                raise Failure(f"frame {t} of camera {i} differs by {worst}")


class _clips:
    """Clips without truth, for `look`."""

    def __init__(self, frame_BTHW3: Tensor):
        self.frame = frame_BTHW3

    def frames_on(self, device: torch.device) -> Clips:
        b, t = self.frame.shape[:2]
        none = torch.zeros(b, 0)
        times = (0.5 * torch.arange(t, dtype=torch.float64)).expand(b, -1)
        return Clips(self.frame.to(device), times.to(device), none, none, none, none, none, none, none)


def seconds(run: Callable[[], object], rounds: int, device: torch.device) -> float:
    """Median of rounds after one that is not counted; processor time on CPUs."""
    taken = []
    for _ in range(rounds + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter() if device.type == "cuda" else time.process_time()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append((time.perf_counter() if device.type == "cuda" else time.process_time()) - begin)
    return statistics.median(taken[1:])


@torch.inference_mode()
def filled(cam: StilleCam, cameras: int) -> None:
    """Give every camera a full long memory of random tokens."""
    cam.see(frames(cameras, 0))
    memory, config = cam.memory, cam.config
    if config.long_memory == "none":
        return
    memory.count_RL[:, :-1] = config.leaf
    memory.leaf_word_RL[:, :-1] = torch.arange(config.leaves, device=cam.device) % config.words
    memory.identity_RW[:] = torch.arange(config.words, device=cam.device)
    memory.next_R[:] = config.words
    memory.last_RW[:] = memory.long_time_RLE[:] = memory.written_RL[:] = 0.0
    memory.long_RLE2C.normal_()
    memory.sum_RLC[:] = memory.long_RLE2C[:, :, :, 0].float().sum(2)


def rates(device: torch.device, batches: list[int], rounds: int) -> list[Record]:
    records = []
    usual = default_dtype(device)
    for batch in batches:
        by_dtype = {}
        for dtype in dict.fromkeys((usual, torch.float32)):
            cam = StilleCam(network(SEEN), device, dtype)
            filled(cam, batch)
            now = frames(batch, 1)
            with torch.inference_mode():
                by_dtype[dtype] = batch / seconds(partial(cam.see, now), rounds, device)
            print(f"{batch:4d} cameras, {dtype!s:15s} {by_dtype[dtype]:8.1f} frames/s", flush=True)
        place = "GPU" if device.type == "cuda" else "CPU thread"
        records.append(measure(
            f"video.model.{device.type}.b{batch}", by_dtype[usual], "frames/s", command=COMMAND,
            baseline="the same in float32" if usual != torch.float32 else None,
            baseline_value=by_dtype[torch.float32] if usual != torch.float32 else None,
            notes=f"Frames per second of one {place}, {batch} cameras at a time, {str(usual).removeprefix('torch.')}. "
            "640x352 pictures in, objects with identities out; full HSA memory; no decoding.",
        ))  # fmt: skip
    return records


def memories(device: torch.device, cameras: int, rounds: int) -> list[Record]:
    """What recalling and classifying costs by kind, less what it costs without a long memory."""
    spent, flops = {}, {}
    for kind in LONG_MEMORIES:
        config = with_long_memory(SEEN, kind)
        cam = StilleCam(network(config), device)
        filled(cam, cameras)
        rows = torch.arange(cameras, device=device)
        now = torch.full((cameras,), 60.0, dtype=torch.float64, device=device)
        x = torch.randn(cameras, config.carried, config.dim, device=device).to(cam.dtype)
        box = torch.tensor([0.2, 0.2, 0.4, 0.6], device=device).expand(cameras, config.carried, 4)
        net = cam.network.identity

        @torch.inference_mode()
        def run(cam=cam, net=net, x=x, box=box, rows=rows, now=now) -> None:
            net(x, torch.zeros_like(x), box, cam._context(rows, net.query(x, torch.zeros_like(x)), now))

        spent[kind] = seconds(run, 5 * rounds, device) / cameras
        with FlopCounterMode(display=False) as counter:
            run()
        flops[kind] = counter.get_total_flops() / cameras
        print(
            f"long memory {kind:6s} {spent[kind] * 1e3:8.3f} ms, {flops[kind] / 1e6:7.1f} MFLOP per frame", flush=True
        )
    share = (flops["hsa"] - flops["none"]) / (flops["dense"] - flops["none"])
    slower = (spent["hsa"] - spent["none"]) / (spent["dense"] - spent["none"])
    records = [measure(
        "video.memory.time", 100 * slower, "%", better="lower", command=COMMAND, goal="value <= 5",
        notes="Time that the long memory of 7,680 tokens costs with HSA, of that with dense attention. What identities "
        "cost without a long memory is taken off both; in plain torch, whose gathering of leaves counts no operations.",
    ), measure(
        "video.memory.flops", 100 * share, "%", command=COMMAND, goal="value <= 5",
        notes="Operations that the long memory of 7,680 tokens costs with HSA, of those with dense attention. Products "
        "alone; what identities cost without a long memory is taken off both. Leaves are chosen once for both layers.",
    )]  # fmt: skip
    for kind in LONG_MEMORIES:
        records.append(measure(
            f"video.memory.{kind}", spent[kind] * 1e3, "ms", better="lower", command=COMMAND,
            baseline=None if kind == "dense" else "dense attention",
            baseline_value=None if kind == "dense" else spent["dense"] * 1e3,
            notes=f"Milliseconds per frame to find out who is who, long memory {kind}, {cameras} cameras together.",
        ))  # fmt: skip
    return records


def training(clips: int, length: int) -> list[Record]:
    """Bytes that autograd keeps for the backward pass, counted on a CPU in bfloat16, for the default step."""
    config, held = VideoTrainConfig(steps=1), {}

    def keep(x: Tensor) -> Tensor:
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    torch.manual_seed(0)
    net = StilleCamNet(SHAPE)
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    alive = []  # so that no address is used twice
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: (alive.append(x), keep(x))[1], lambda x: x)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        clip_loss(net, _truth(clips, length), config, torch.Generator().manual_seed(0), True)
    held_bytes = sum(size for where, size in held.items() if where not in weights) / (clips * length)
    whole = held_bytes * config.batch * config.frames + 16 * net.parameter_count
    print(f"training: {held_bytes / 2**20:.1f} MiB per picture, {whole / 2**30:.1f} GiB for a step", flush=True)
    return [measure(
        "video.train.memory", whole / 2**30, "GiB", better="lower", command=COMMAND, goal="value <= 100",
        notes=f"GiB that a step of {config.batch} clips of {config.frames} frames keeps for its backward pass, with "
        f"weights, gradients and AdamW. Counted on {clips} x {length} pictures, in proportion; without identities' "
        "attention among all frames, which grows with their square, and the allocator's waste.",
    )]  # fmt: skip


def _truth(b: int, t: int) -> Clips:
    m = 12
    box = torch.tensor([0.2, 0.2, 0.4, 0.6]).expand(b, t, m, 4) + 0.03 * torch.arange(m)[:, None]
    nan = torch.full((b, t, m, len(ATTRIBUTES)), torch.nan)
    frame = torch.from_numpy(pictures(b * t, 0)).view(b, t, SHAPE.height, SHAPE.width, 3)
    return Clips(
        frame, torch.arange(t, dtype=torch.float64).expand(b, -1) / 5, torch.zeros(b, m, dtype=torch.int64), box,
        torch.ones(b, t, m), nan, torch.zeros(b, t, m, 2), torch.zeros(b, 0, 4), torch.zeros(b, t, 0),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the records there")
    parser.add_argument("--busy", action="store_true", help="the machine is in use: record nothing")
    parser.add_argument("--batches", type=int, nargs="+", help="cameras at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    batches = options.batches or ([1, 8, 64, 200] if device.type == "cuda" else [1, 4, 8])
    flops = flops_per_frame(SHAPE)
    print(f"{StilleCamNet(SHAPE).parameter_count:,} parameters; GFLOP per frame:", end=" ")
    print(", ".join(f"{part} {value / 1e9:.2f}" for part, value in flops.items()), flush=True)
    try:
        check(device)
    except Failure as failure:
        print(f"wrong: {failure}", file=sys.stderr)
        return 1
    records = [measure(
        "video.model.flops", flops["total"] / 1e9, "GFLOP", better="lower", command=COMMAND,
        notes="GFLOP of one frame of one camera, products alone.",
    )]  # fmt: skip
    records += rates(device, batches, options.rounds)
    records += memories(device, 4 if device.type == "cpu" else 64, options.rounds)
    records += training(1, 2)
    print(render_table(records))
    if options.json and not options.busy:
        write(options.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
