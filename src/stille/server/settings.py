"""What the HTTP side of the server can be told; the engine has its own `EngineConfig`."""

from dataclasses import dataclass
from pathlib import Path

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
        data_dir: folder of what has to survive a restart (uploaded files, batches), made if need be; one server at a
            time may use it. None: nothing is kept on disk, and there are no files and batches.
        max_file_bytes: largest file that may be uploaded.
        max_files: most uploaded files that are kept; what batches write does not count.
        max_batch_seqs: most sequences of batches that are computed together; None: as many as there are slots in the
            engine, less one in 16.
        stored_responses: most responses that are kept; the ones used longest ago make room.
        stored_responses_bytes: most bytes that kept responses take.
        stored_responses_days: days after its last use that a response is kept.
    """

    served_model_names: tuple[str, ...] = ()
    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 4 * 1024 * 1024
    drain_timeout_s: float = 30.0
    max_choices: int = 64
    data_dir: Path | None = None
    max_file_bytes: int = 200 * 1024 * 1024
    max_files: int = 1000
    max_batch_seqs: int | None = None
    stored_responses: int = 10_000
    stored_responses_bytes: int = 256 * 1024 * 1024
    stored_responses_days: float = 30.0

    def __post_init__(self):
        if self.max_body_bytes < 1024:
            raise ConfigError(f"max_body_bytes is {self.max_body_bytes}; it must be at least 1024")
        if self.drain_timeout_s < 0:
            raise ConfigError(f"drain_timeout_s is {self.drain_timeout_s}; it must not be negative")
        if self.max_choices < 1:
            raise ConfigError(f"max_choices is {self.max_choices}; it must be at least 1")
        for name in ("stored_responses", "stored_responses_bytes", "stored_responses_days"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.max_file_bytes < 1 or self.max_files < 1:
            raise ConfigError(
                f"max_file_bytes is {self.max_file_bytes} and max_files {self.max_files}; both must be at least 1"
            )
        if self.max_batch_seqs is not None and self.max_batch_seqs < 1:
            raise ConfigError(f"max_batch_seqs is {self.max_batch_seqs}; it must be at least 1")
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("the API key is empty; leave it unset to run without a key")
