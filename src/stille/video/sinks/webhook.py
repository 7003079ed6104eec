"""Events by HTTP POST, signed so that the receiver knows who sent them and when."""

from __future__ import annotations

import hashlib
import hmac
import time

from stille.video.errors import SinkError
from stille.video.sinks.lanes import RefusedError
from stille.video.types import Event

AGAIN = {408, 409, 423, 425, 429}
"""Answers below 500 after which it is tried again."""


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """What the header `Stille-Signature` says: HMAC-SHA256 over `timestamp.body`."""
    return "v1=" + hmac.new(secret.encode(), b"%d." % timestamp + body, hashlib.sha256).hexdigest()


def verify(secret: str, timestamp: str, body: bytes, given: str, tolerance_s: float = 300.0) -> bool:
    """For receivers: whether the headers `Stille-Timestamp` and `Stille-Signature` are of this body, and recent."""
    if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > tolerance_s:
        return False
    return hmac.compare_digest(signature(secret, int(timestamp), body).encode(), given.encode())


class Webhook:
    """The body is the event as JSON; the header `Idempotency-Key` is `id:revision`, the same in each attempt.

    Args:
        secret: shared with the receiver; at least 16 characters.
        timeout_s: for connecting, and for each part of an answer.

    Raises:
        SinkError: the URL or the secret will not do.
    """

    def __init__(self, url: str, secret: str, name: str | None = None, timeout_s: float = 10.0, withheld: bool = False):
        import httpx

        target = httpx.URL(url)
        if target.scheme not in ("http", "https") or not target.host:
            raise SinkError(f"webhook {target.host or url!r}: expected an http or https URL")
        if len(secret) < 16:
            raise SinkError(f"webhook {target.host}: its secret has {len(secret)} characters, expected at least 16")
        self.name = name or f"webhook:{target.host}"
        self.withheld = withheld
        self._url, self._secret = target, secret
        self._client = httpx.Client(timeout=timeout_s, follow_redirects=False)

    def send(self, event: Event) -> None:
        body, now = event.model_dump_json().encode(), int(time.time())
        headers = {
            "Content-Type": "application/json",
            "Stille-Timestamp": str(now),
            "Stille-Signature": signature(self._secret, now, body),
            "Idempotency-Key": f"{event.id}:{event.revision}",
        }
        with self._client.stream("POST", self._url, content=body, headers=headers) as response:
            status = response.status_code  # the answer's body is of no interest
        if 200 <= status < 300:
            return
        text = f"{self.name} answered {status}"
        raise SinkError(text) if status >= 500 or status in AGAIN else RefusedError(text)

    def close(self) -> None:
        self._client.close()
