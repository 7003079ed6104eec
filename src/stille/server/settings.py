"""What the HTTP side of the server can be told; the engine has its own `EngineConfig`."""

from dataclasses import dataclass

from stille.errors import ConfigError


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the HTTP server.

    Attributes:
        served_model_names: names that requests may use for the model, the first one is what answers carry;
            empty = the engine's own model name.
        api_key: if set, every API request needs `Authorization: Bearer <api_key>`; probes and metrics stay open.
        cors_origins: origins that browsers may call from; `("*",)` = any. Empty = no CORS headers.
        max_body_bytes: larger request bodies are refused with 413 before they are read to the end.
        drain_timeout_s: how long SIGTERM waits for running requests before it aborts them.
        max_choices: bound on prompts x n of one request.
    """

    served_model_names: tuple[str, ...] = ()
    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 4 * 1024 * 1024
    drain_timeout_s: float = 30.0
    max_choices: int = 64

    def __post_init__(self):
        if self.max_body_bytes < 1024:
            raise ConfigError(f"max_body_bytes is {self.max_body_bytes}; it must be at least 1024")
        if self.drain_timeout_s < 0:
            raise ConfigError(f"drain_timeout_s is {self.drain_timeout_s}; it must not be negative")
        if self.max_choices < 1:
            raise ConfigError(f"max_choices is {self.max_choices}; it must be at least 1")
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("the API key is empty; leave it unset to run without a key")
