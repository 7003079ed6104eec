"""A watch with a page in a process of its own: a film acts as a camera, and the truth of its scene as perception.

python tests/web/hall.py FOLDER [endpoint]: FOLDER has `hall.mp4`, `truth.npz` and `rules.yaml`, and gets the rest.
Prints the page's address; ends when its input does.
"""

import sys
import threading
import time
from pathlib import Path

import numpy as np

from stille.video.events import Desk
from stille.video.evidence import Evidence
from stille.video.pipeline import Pipeline
from stille.video.sinks import Lane, Sinks
from stille.video.store import Store
from stille.video.types import Seen
from stille.web import Ask, PageServer, RulesFile, Site


class Truth:
    """Sees what the scene says; a film that begins again shows new people, as identities are never used again."""

    def __init__(self, path: Path):
        self.truth = np.load(path)

    def see(self, frames):
        return [self._look(frame) for frame in frames]

    def _look(self, frame):
        kind_M, box_TM4, there_TM, odds_TMA = (self.truth[name] for name in ("kind", "box", "there", "odds"))
        round, t = divmod(frame.index, len(box_TM4))
        on = np.flatnonzero(there_TM[t])
        scale = np.array([*frame.size, *frame.size])
        return Seen(
            frame.camera, frame.index, frame.time, frame.size, (box_TM4[t, on] * scale).astype(np.float32), kind_M[on],
            np.full(len(on), 0.9, np.float32), on + round * len(kind_M), odds_TMA[t, on].astype(np.float32),
        )  # fmt: skip


def main() -> None:
    folder = Path(sys.argv[1])
    rules, out = RulesFile(folder / "rules.yaml"), folder / "out"
    out.mkdir(exist_ok=True)
    store = Store(out / "events.db")
    ask = Ask.endpoint(sys.argv[2], "clerk") if len(sys.argv) > 2 else Ask.default()
    site = Site(rules, store, out / "state.json", evidence=out / "evidence", ask=ask)
    desk = Desk(rules.rules, Sinks([Lane(store)]), None, Evidence(out / "evidence"), before_s=1.5, after_s=0.5)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    server = PageServer(0)
    with Pipeline(
        Truth(folder / "truth.npz"), on_seen=[desk.see, site.wall.see], on_trouble=[site.trouble]
    ) as pipeline:
        source = f"{folder / 'hall.mp4'}#name=hall,realtime=true,loop=true"
        pipeline.add(source)
        site.start(pipeline, desk, [source])
        server.start(site)
        print(server.url, flush=True)
        while not ended.is_set():
            pipeline.run(until=lambda: site.look() or ended.is_set())
            time.sleep(0.05)
    server.close()
    desk.close()


if __name__ == "__main__":
    main()
