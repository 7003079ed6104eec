"""Parts of `stille watch` that are made of its options: verifier, annotated films, preview."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from stille.video.annotate import Annotator
    from stille.video.events import Desk, Verifier
    from stille.video.films import Films
    from stille.video.preview import Preview
    from stille.video.sinks import Lane

VERIFIERS = ("consistency", "second-look", "none")


def verifier(name: str, cam: Any) -> Verifier | None:
    """What `--verify` names; "second-look" comes after "consistency"."""
    from stille.video.events import Consistency
    from stille.video.second_look import All, SecondLook

    if name not in VERIFIERS:
        raise typer.BadParameter(f"verifier {name!r} is unknown; choose {', '.join(VERIFIERS)}")
    if name == "none":
        return None
    return All([Consistency(), SecondLook(cam)]) if name == "second-look" else Consistency()


def nats_lane(url: str, stream: str | None, out: Path) -> Lane:
    """Events to a NATS server."""
    from stille.video.sinks import Lane
    from stille.video.sinks.nats import Nats

    return Lane(Nats(url, stream=stream), spool=out / "spool" / "nats")


class Views:
    """Annotated films and previews of a run: give `see` to the pipeline behind the desk's.

    Args:
        film: path of an MP4, of several sources with the camera's name before the ending.
        preview: PORT or HOST:PORT.
    """

    def __init__(self, film: Path | None, preview: str | None, sources: Sequence[str], desk: Desk):
        from stille.video.annotate import Annotator
        from stille.video.films import Films
        from stille.video.preview import LOOPBACK, Preview
        from stille.video.sources import parse

        self.preview: Preview | None = None
        self.films: Films | None = None
        if preview is not None:
            host, _, port = preview.rpartition(":")
            host = host.strip("[]") or "127.0.0.1"
            if not port.isdecimal() or int(port) > 65535:
                raise typer.BadParameter(f"preview {preview!r}: expected PORT or HOST:PORT")
            key = None if host in LOOPBACK else secrets.token_urlsafe(16)
            self.preview = Preview(host, int(port), key)
            typer.echo(f"preview at {self.preview.url}", err=True)
        if film is not None:
            live = [one.kind not in ("file", "folder") or options.realtime for one, options in map(parse, sources)]
            self.films = Films(film, each=len(sources) > 1, wait=not any(live))
        outputs = [one for one in (self.films, self.preview) if one is not None]
        self.annotator: Annotator | None = None
        if outputs:
            self.annotator = Annotator(lambda: desk.rules, lambda: desk.engine.open_events(), outputs)

    @property
    def on_seen(self) -> list[Any]:
        return [self.annotator.see] if self.annotator is not None else []

    def close(self) -> None:
        """Finish the films, send viewers away."""
        if self.annotator is not None:
            self.annotator.end()
        if self.films is not None:
            self.films.close()
            for camera, path in self.films.paths.items():
                typer.echo(f"annotated film of {camera}: {path}", err=True)
            lost = {what: n for what, n in self.films.counts.items() if what != "written"}
            if lost:
                typer.echo(f"films: {', '.join(f'{n} frames {what}' for what, n in lost.items())}", err=True)
        if self.preview is not None:
            self.preview.close()
