"""From a camera to frames: files, RTSP, HLS and HTTP, webcams, folders of images, by libav."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from stille.video.sources.address import Options, parse, redact
from stille.video.sources.failures import ReadError

if TYPE_CHECKING:
    from stille.video.sources.source import LibavSource
    from stille.video.types import Trouble

__all__ = ["open_source", "Options", "ReadError", "parse", "redact"]


def open_source(
    text: str, options: Options | None = None, *, on_trouble: Callable[[Trouble], None] | None = None
) -> LibavSource:
    """A source of frames by its text, whose grammar `stille.video.sources.address` has.

        for frame in open_source("rtsp://viewer:secret@10.0.0.5/stream2#fps=5,size=640x360"):
            ...

    It is opened when the iteration begins. A live source is opened again for ever, with growing pauses; a recording
    raises what is wrong with it.

    Args:
        options: of which those in the text go first.
        on_trouble: is told, in the thread that iterates, when the source goes offline and comes back ("offline"), when
            its clock jumps ("clock") and when its pictures change their size ("size").

    Raises:
        SourceError: the text cannot be read.
    """
    from stille.video.sources.source import LibavSource

    address, options = parse(text, options)
    return LibavSource(address, options, on_trouble)
