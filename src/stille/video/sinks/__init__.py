"""Where events go: each sink behind a lane of its own, so that one that is slow or dead keeps nobody waiting."""

from stille.video.sinks.jsonl import JsonLines
from stille.video.sinks.lanes import Lane, Sink, Sinks
from stille.video.sinks.webhook import Webhook, signature, verify

__all__ = ["JsonLines", "Lane", "Sink", "Sinks", "Webhook", "signature", "verify"]
