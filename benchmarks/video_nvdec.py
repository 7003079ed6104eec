"""How many 1080p cameras the GPU's own decoder carries: frames per second of NVDEC, to RGB in the model's size.

    python benchmarks/video_nvdec.py --film 1080p.mp4 --sessions 8 16 32 64 --json results.json

Each session decodes the film over and over with PyNvVideoCodec, as fast as it goes, in `--processes` processes. A frame
stays on the GPU: NV12 to RGB, and resized to 640x352 as the model wants it. The figure is the rate of the best number
of sessions, over 30. The model does not run meanwhile; benchmarks/video_cameras.py says what it takes.
"""

import argparse
import multiprocessing
import sys
import threading
import time
from pathlib import Path
from typing import Any

from stille import ledger

FPS = 30


def decode(film: Path, until: float, counts: list[int], convert: bool) -> None:
    """One session: counts frames that are through."""
    import PyNvVideoCodec as nvc  # pyright: ignore[reportMissingImports]
    import torch

    stream = torch.cuda.Stream()
    done, decoder = 0, None
    while time.time() < until:
        demuxer = nvc.CreateDemuxer(filename=str(film))
        if decoder is None:
            decoder = nvc.CreateDecoder(gpuid=0, codec=demuxer.GetNvCodecId(), usedevicememory=True)
        for packet in demuxer:
            for frame in decoder.Decode(packet):
                if convert:
                    with torch.cuda.stream(stream):
                        to_model(torch.from_dlpack(frame))
                done += 1
            if time.time() >= until:
                break
    stream.synchronize()
    counts.append(done)


def to_model(nv12_HW: Any) -> Any:
    """uint8 RGB [352, 640, 3] of a picture in NV12 (BT.709, limited range)."""
    import torch
    from torch.nn.functional import interpolate

    rows = 2 * nv12_HW.shape[0] // 3
    luma = interpolate(nv12_HW[:rows][None, None].half(), (352, 640), mode="area")[0, 0]
    chroma = nv12_HW[rows:].reshape(rows // 2, -1, 2).permute(2, 0, 1)[None].half()
    u, v = interpolate(chroma, (352, 640), mode="bilinear")[0] - 128
    y = 1.164 * (luma - 16)
    rgb = torch.stack([y + 1.793 * v, y - 0.213 * u - 0.533 * v, y + 2.112 * u], -1)
    return rgb.clamp_(0, 255).to(torch.uint8)


def process(film: Path, sessions: int, start: Any, seconds: float, convert: bool, answer: Any) -> None:
    import torch

    torch.set_num_threads(1)
    to_model(torch.zeros(1620, 1920, dtype=torch.uint8, device="cuda"))
    start.wait()
    counts: list[int] = []
    until = time.time() + seconds
    threads = [threading.Thread(target=decode, args=(film, until, counts, convert)) for _ in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answer.put((sum(counts), len(counts)))


def rate(film: Path, sessions: int, processes: int, seconds: float, convert: bool) -> float:
    context = multiprocessing.get_context("spawn")
    processes = min(processes, sessions)
    start, answer = context.Barrier(processes), context.Queue()
    shares = [sessions // processes + (i < sessions % processes) for i in range(processes)]
    workers = [
        context.Process(target=process, args=(film, share, start, seconds, convert, answer)) for share in shares
    ]  # fmt: skip
    for worker in workers:
        worker.start()
    counts = [answer.get(timeout=seconds + 120) for _ in workers]
    for worker in workers:
        worker.join()
    if sum(count for _, count in counts) != sessions:
        raise SystemExit(f"only {sum(count for _, count in counts)} of {sessions} sessions ran; nothing is recorded")
    return sum(frames for frames, _ in counts) / seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--film", type=Path, required=True, help="of 1920x1080, H.264")
    parser.add_argument("--sessions", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--json", type=Path, help="write the records there")
    options = parser.parse_args()
    command = f"python benchmarks/video_nvdec.py {ledger.arguments()}"
    found = {}
    for convert in (False, True):
        rates = {}
        for sessions in options.sessions:
            rates[sessions] = rate(options.film, sessions, options.processes, options.seconds, convert)
            print(
                f"{sessions} sessions, {'to RGB' if convert else 'decoded'}: {rates[sessions]:.0f} frames/s", flush=True
            )
        found[convert] = max(rates.items(), key=lambda pair: pair[1])
    (plain_n, plain), (n, whole) = found[False], found[True]
    records = [
        ledger.measure(
            "video.cameras.nvdec.1080p", whole / FPS, "cameras", command=command, goal="value >= 70",
            notes="Cameras of 1920x1080 H.264 at 30 FPS that NVDEC decodes, converted and scaled on the GPU, the model "
            f"not running. {whole:.0f} frames/s with {n} sessions; decoded alone {plain:.0f} with {plain_n}.",
        )
    ]  # fmt: skip
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
