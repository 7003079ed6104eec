"""What goes wrong between a caller and a service: latency, errors before and after the effect, hanging, rate limits."""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

Fault = Literal["none", "error", "unavailable", "hang", "error_after", "hang_after"]
Share = Field(default=0.0, ge=0, le=1)


class Faults(BaseModel):
    """How unreliable a service is. Shares are of requests.

    Attributes:
        seed: the n-th request of a service meets the same fault each time.
        latency_ms: median; a tenth of the requests take about three times as long.
        error: 500, nothing was done.
        unavailable: 503 with Retry-After, nothing was done.
        hang: no answer for `hang_s`, nothing was done.
        error_after: 500 although it was done.
        hang_after: it was done, then no answer for `hang_s`.
        rate: requests per second of one client (header X-Client-Id, else its address); None: any number.
        burst: requests at once before `rate` counts.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = 0
    latency_ms: float = Field(default=0.0, ge=0)
    error: float = Share
    unavailable: float = Share
    hang: float = Share
    error_after: float = Share
    hang_after: float = Share
    hang_s: float = Field(default=30.0, gt=0)
    rate: float | None = Field(default=None, gt=0)
    burst: int = Field(default=10, ge=1)

    def of_request(self, service: str, number: int) -> tuple[Fault, float]:
        """What the n-th request of a service meets, and its latency in seconds."""
        digest = hashlib.sha256(f"{self.seed} {service} {number}".encode()).digest()
        rng = random.Random(digest)
        drawn = rng.random()
        latency = self.latency_ms / 1000 * math.exp(rng.gauss(0, 0.85))
        faults: tuple[Fault, ...] = ("error", "unavailable", "hang", "error_after", "hang_after")
        for fault in faults:
            drawn -= getattr(self, fault)
            if drawn < 0:
                return fault, latency
        return "none", latency


REALISTIC = Faults(latency_ms=80, error=0.03, unavailable=0.03, hang=0.01, error_after=0.02, hang_after=0.01, rate=20)


class _Buckets:
    """Token buckets of clients."""

    def __init__(self, rate: float, burst: int):
        self.rate, self.burst = rate, burst
        self._state: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, client: str) -> float:
        """0 if a request may go on, else the seconds until one may."""
        now = time.monotonic()
        with self._lock:
            tokens, then = self._state.get(client, (float(self.burst), now))
            tokens = min(self.burst, tokens + (now - then) * self.rate)
            allowed = tokens >= 1
            self._state[client] = (tokens - allowed, now)
        return 0.0 if allowed else (1 - tokens) / self.rate


def install(app: FastAPI, service: str, faults: Faults) -> None:
    """Puts faults before every endpoint of a service, but not its OpenAPI document and /health."""
    buckets = _Buckets(faults.rate, faults.burst) if faults.rate else None
    lock, count = threading.Lock(), 0

    def failed(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
        return JSONResponse({"detail": detail}, status, headers)

    @app.middleware("http")
    async def meet(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        nonlocal count
        if request.url.path.endswith(("/openapi.json", "/health", "/docs")):
            return await go_on(request)
        client = request.headers.get("x-client-id") or (request.client.host if request.client else "?")
        if buckets and (wait := buckets.take(client)):
            return failed(429, "too many requests", {"Retry-After": str(max(1, math.ceil(wait)))})
        with lock:
            number, count = count, count + 1
        fault, latency = faults.of_request(service, number)
        await asyncio.sleep(latency)
        if fault == "error":
            return failed(500, "internal error")
        if fault == "unavailable":
            return failed(503, "temporarily unavailable", {"Retry-After": "1"})
        if fault == "hang":
            await asyncio.sleep(faults.hang_s)
            return failed(504, "timeout")
        response = await go_on(request)
        if fault == "hang_after":
            await asyncio.sleep(faults.hang_s)
        if fault in ("error_after", "hang_after"):
            return failed(500, "internal error")
        return response
