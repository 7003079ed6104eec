"""The one error hierarchy. A message says what was given, what was expected and what to do."""


class StilleError(Exception):
    """Base of every error that Stille raises on purpose."""


class ConfigError(StilleError):
    """A configuration is contradictory or names something unknown."""


class CheckpointError(StilleError):
    """A checkpoint cannot be used: unknown architecture, missing, extra or misshapen tensors, damaged file."""


class ModelNotFoundError(StilleError):
    """A model name or path leads nowhere, or its download is impossible; the message says what to place where."""


class InvalidRequestError(StilleError):
    """A request can never be served as given.

    Attributes:
        param: name of the offending parameter, if one is to blame.
    """

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message)
        self.param = param


class PromptTooLongError(InvalidRequestError):
    """The prompt (plus the tokens asked for) does not fit the model's context or the cache."""


class QueueFullError(StilleError):
    """The engine's admission queue is full.

    Attributes:
        retry_after_s: a sensible number of seconds to wait.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineClosedError(StilleError):
    """The engine has shut down or is draining and takes no new requests."""


class EngineFailedError(StilleError):
    """The engine's loop ended by an error; every request it had fails with this, and it takes no more."""


class UnsupportedError(StilleError):
    """The combination asked for is not available here (hardware, dtype, missing extra)."""
