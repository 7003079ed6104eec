"""/v1/responses: create, retrieve, cancel, delete, and the items that a response was asked with."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import JSONResponse, Response

from stille.server.errors import ApiError, from_validation
from stille.server.openapi import errors, generated_events
from stille.server.response_store import StoredResponse
from stille.server.responses_events import ResponseBuilder
from stille.server.responses_input import Conversation, conversation, kept_items, new_id
from stille.server.responses_run import EventLog, Run, count_input, new_response, start_response
from stille.server.routes.common import deliver, require_model, state_of
from stille.server.schemas.responses import (
    DeletedResponse,
    Includable,
    InputTokens,
    ItemList,
    ResponseEvent,
    ResponseRequest,
    hint,
)
from stille.server.schemas.responses import Response as ResponseObject
from stille.server.state import ServerState
from stille.server.streaming import EventStream

_DONE = ("completed", "incomplete")


class _Route(APIRoute):
    """Says of refused parameters what they are called in this API."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def named(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise from_validation(error, hint) from error

        return named


router = APIRouter(tags=["responses"], route_class=_Route)
Include = Annotated[list[Includable] | None, Query(description="Accepted; what was asked for is kept.")]


@router.post(
    "/v1/responses",
    response_class=Response,
    responses=generated_events(ResponseObject, ResponseEvent) | errors(400, 401, 404, 413, 429, 500, 503),
)
async def create_response(request: Request, body: ResponseRequest) -> Response:
    """Answer one turn of a conversation: all at once, as server-sent events, or in the background."""
    state = state_of(request)
    model = require_model(state, body.model)
    _check(body)
    response_id = new_id("resp")
    talk = await _conversation(state, body)
    generation, answer = await start_response(state, body, talk, response_id)
    builder = ResponseBuilder(new_response(body, model, response_id), generation.params.logprobs)
    run = Run(state.responses, generation, answer, builder, kept_items(body.input), body.stored())
    if body.background:
        events = EventLog() if body.stream else None
        first = await run.detach(state, events)
        return JSONResponse(first) if events is None else EventStream(events.follow(), on_close=_nothing)
    return await deliver(request, generation, stream=body.stream, events=run.encoded, collect=run.collect)


@router.post("/v1/responses/input_tokens", response_model=InputTokens, responses=errors(400, 401, 404, 413, 500, 503))
async def count_input_tokens(request: Request, body: ResponseRequest) -> InputTokens:
    """The number of prompt tokens that a request would have."""
    state = state_of(request)
    require_model(state, body.model)
    return InputTokens(input_tokens=await count_input(state, body, await _conversation(state, body)))


@router.post("/v1/responses/compact", include_in_schema=False)
async def compact_response() -> Response:
    """Not there; without this route the path would look like a response's id."""
    message = "Compaction is not supported; truncation 'auto' drops the oldest turns of a long conversation."
    raise ApiError(404, message, code="unknown_url")


@router.get(
    "/v1/responses/{response_id}",
    response_class=Response,
    responses={200: {"model": ResponseObject}} | errors(400, 401, 404, 500),
)
async def get_response(
    request: Request,
    response_id: str,
    include: Include = None,
) -> Response:
    """A kept response, or one that is still being made. It cannot be streamed, as events are not kept."""
    asked = request.query_params
    if asked.get("stream", "false").lower() not in ("false", "0") or "starting_after" in asked:
        param = "starting_after" if "starting_after" in asked else "stream"
        message = "The events of a response are not kept; leave out stream and starting_after, and poll its status."
        raise ApiError(400, message, code="unsupported_parameter", param=param)
    state = state_of(request)
    run = state.responses.live.get(response_id)
    return JSONResponse(run.builder.snapshot() if run else (await _stored(state, response_id)).response)


@router.delete("/v1/responses/{response_id}", response_model=DeletedResponse, responses=errors(401, 404, 500))
async def delete_response(request: Request, response_id: str) -> DeletedResponse:
    """Forget a response, and end it if it runs in the background. What goes on from it cannot be continued."""
    responses = state_of(request).responses
    run = responses.live.pop(response_id, None)
    if run is not None:
        await run.forget()
    if not await responses.store.delete(response_id) and run is None:
        raise _unknown(response_id)
    return DeletedResponse(id=response_id)


@router.post(
    "/v1/responses/{response_id}/cancel",
    response_class=Response,
    responses={200: {"model": ResponseObject}} | errors(400, 401, 404, 500, 503),
)
async def cancel_response(request: Request, response_id: str) -> Response:
    """End a background response. One that has ended is answered as it is."""
    state = state_of(request)
    run = state.responses.live.get(response_id)
    if run is not None and run.in_background:
        await run.cancel()
    response = run.builder.response if run is not None else (await _stored(state, response_id)).response
    if not response["background"]:
        message = "Only responses created with background=true can be cancelled; others end with their connection."
        raise ApiError(400, message, code="incompatible_parameters", param="response_id")
    return JSONResponse(response)


@router.get("/v1/responses/{response_id}/input_items", response_model=ItemList, responses=errors(400, 401, 404, 500))
async def list_input_items(
    request: Request,
    response_id: str,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="asc: as they were sent.")] = "desc",
    after: Annotated[str | None, Query(description="The id behind which the page begins.")] = None,
    include: Include = None,
) -> ItemList:
    """The items that a response was asked with, without those of the responses that it goes on from."""
    state = state_of(request)
    run = state.responses.live.get(response_id)
    items = list(run.items if run else (await _stored(state, response_id)).items)
    if order == "desc":
        items.reverse()
    start = 0
    if after is not None:
        start = next((index + 1 for index, item in enumerate(items) if item["id"] == after), 0)
        if not start:
            raise ApiError(400, "The response has no such item.", code="invalid_request", param="after")
    page = items[start : start + limit]
    ends = (page[0]["id"], page[-1]["id"]) if page else (None, None)
    return ItemList(data=page, first_id=ends[0], last_id=ends[1], has_more=start + limit < len(items))


def _check(body: ResponseRequest) -> None:
    if body.stream_options is not None and not body.stream:
        message = "stream_options is only allowed with stream=true."
        raise ApiError(400, message, code="incompatible_parameters", param="stream_options")
    if body.background and not body.stored():
        message = "A background response can only be had from the store; leave out store or background."
        raise ApiError(400, message, code="incompatible_parameters", param="background")


async def _conversation(state: ServerState, body: ResponseRequest) -> Conversation:
    """What the answer goes on from, earlier responses included."""
    before = body.previous_response_id
    if before is None:
        return conversation(body, [])
    param = "previous_response_id"
    if before in state.responses.live:
        message = f"The response '{before}' is not complete yet; go on from it when its status says so."
        raise ApiError(400, message, code="incompatible_parameters", param=param)
    chain, missing = await state.responses.store.chain(before)
    if missing is not None:
        message = (
            f"Previous response with id '{missing}' not found: it was not stored, was deleted, or had to make room. "
            "Send the whole conversation as input."
        )
        raise ApiError(400, message, code="previous_response_not_found", param=param)
    status = chain[-1].response["status"]
    if status not in _DONE:
        message = f"The response '{before}' is {status}, and nothing can go on from it; go on from one before it."
        raise ApiError(400, message, code="incompatible_parameters", param=param)
    return conversation(body, [item for kept in chain for item in (*kept.items, *kept.response["output"])])


async def _stored(state: ServerState, response_id: str) -> StoredResponse:
    stored = await state.responses.store.get(response_id)
    if stored is None:
        raise _unknown(response_id)
    return stored


def _unknown(response_id: str) -> ApiError:
    message = (
        f"Response with id '{response_id[:128]}' not found: it was never stored, was deleted, or had to make room."
    )
    return ApiError(404, message, code="response_not_found", param="response_id")


async def _nothing() -> None:
    """Clients that stop following a background response do not end it."""
