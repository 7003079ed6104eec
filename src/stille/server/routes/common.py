"""What the routes share: the server's state, the model's name, identifiers, delivery."""

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from fastapi import Request
from starlette.responses import JSONResponse, Response

from stille.server.errors import ApiError
from stille.server.generation import Generation
from stille.server.schemas.base import SamplingBody
from stille.server.state import ServerState
from stille.server.streaming import ClientGone, EventStream, unless_disconnected


def state_of(request: Request) -> ServerState:
    """The server that the request reached."""
    return request.app.state.stille


def require_model(state: ServerState, name: str | None) -> str:
    """The name to answer with; 404 if the request asks for a model that is not served."""
    if name is not None and name not in state.model_names:
        message = f"The model '{name[:200]}' does not exist; this server has: {', '.join(state.model_names)}."
        raise ApiError(404, message, code="model_not_found", param="model")
    return name or state.model_names[0]


def check_stream_options(body: SamplingBody) -> None:
    """400 if stream_options comes without stream."""
    if body.stream_options is not None and not body.stream:
        message = "stream_options is only allowed with stream=true."
        raise ApiError(400, message, code="incompatible_parameters", param="stream_options")


def usage_of_chunks(generation: Generation, body: SamplingBody) -> Callable[[], dict[str, Any]]:
    """What says the `usage` field of each chunk of a stream: nothing, null, or the counts so far."""
    if body.wants_continuous_usage():
        return lambda: {"usage": generation.usage_so_far().model_dump()}
    if body.wants_stream_usage():
        return lambda: {"usage": None}
    return dict


def new_id(prefix: str) -> str:
    """A fresh identifier such as chatcmpl-0f3a..."""
    return f"{prefix}-{uuid.uuid4().hex}"


async def deliver(
    request: Request,
    generation: Generation,
    *,
    stream: bool | None,
    events: Callable[[], AsyncGenerator[bytes, None]],
    collect: Callable[[], Awaitable[dict[str, Any]]],
) -> Response:
    """Answer with a generation that was started, streamed or whole; whatever happens, nothing of it is left running.

    Args:
        events: makes the stream's encoded events.
        collect: makes the body of a whole answer.

    Raises:
        StilleError: the engine fails before a whole answer is complete.
    """
    try:
        if stream:
            return EventStream(events(), on_close=generation.close)
        answer = await unless_disconnected(request, collect())
    except ClientGone:
        await generation.close()
        return Response(status_code=499)  # for the log; nobody is there to read it
    except BaseException:
        await generation.close()
        raise
    await generation.close()
    return JSONResponse(answer)
