"""What can go wrong with video, for callers to tell apart."""

from stille.errors import StilleError


class VideoError(StilleError):
    """Of everything in `stille.video`."""


class SourceError(VideoError):
    """A source cannot be opened or read; the message says which and what to do, without its password."""


class RulesError(VideoError):
    """A rules file is wrong; the message has a line `file:line: field: what` for each thing that is."""


class SinkError(VideoError):
    """A sink takes no more."""
