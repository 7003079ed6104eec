"""/v1/batches: requests in a file, answered within a day when nobody else needs the engine."""

import asyncio
import json
from typing import Annotated

from fastapi import APIRouter, Query, Request

from stille.server.batches.files import OUTPUT_PURPOSE, no_file
from stille.server.batches.in_process import has_route
from stille.server.batches.store import BatchRecord
from stille.server.errors import ApiError
from stille.server.openapi import errors
from stille.server.routes.files import CONFLICT, NOT_FOUND, service_of
from stille.server.schemas.batches import Batch, BatchErrors, BatchList, BatchRequest, RequestCounts

router = APIRouter(tags=["files and batches"])


@router.post("/v1/batches", response_model=Batch, responses=errors(400, 401, 413, 429, 503) | NOT_FOUND)
async def create_batch(request: Request, body: BatchRequest) -> Batch:
    """Have the requests of an uploaded file answered."""
    service = service_of(request)
    if not has_route(request.app, body.endpoint):
        message = f"This server has no '{body.endpoint}'; see /openapi.json for what there is."
        raise ApiError(400, message, code="invalid_request", param="endpoint")
    file = await asyncio.to_thread(service.files.get, body.input_file_id)
    if file is None:
        raise no_file(body.input_file_id, "input_file_id")
    if file.purpose == OUTPUT_PURPOSE:
        message = f"The file '{file.id}' was written by a batch; upload one with requests."
        raise ApiError(400, message, code="invalid_request", param="input_file_id")
    keep_s = None if body.output_expires_after is None else body.output_expires_after.seconds
    record = await asyncio.to_thread(
        service.batches.create, body.endpoint, file.id, body.completion_window, body.metadata, keep_s
    )
    service.worker.wake()
    return _shown(record)


@router.get("/v1/batches", response_model=BatchList, responses=errors(400, 401) | NOT_FOUND)
async def list_batches(
    request: Request, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> BatchList:
    """The batches, the newest first."""
    records, more = await asyncio.to_thread(service_of(request).batches.page, after=after, limit=limit)
    data = [_shown(record) for record in records]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return BatchList(data=data, first_id=ends[0], last_id=ends[1], has_more=more)


@router.get("/v1/batches/{batch_id}", response_model=Batch, responses=errors(401) | NOT_FOUND)
async def retrieve_batch(request: Request, batch_id: str) -> Batch:
    """How far a batch is."""
    return _shown(await asyncio.to_thread(service_of(request).batches.get, batch_id))


@router.post("/v1/batches/{batch_id}/cancel", response_model=Batch, responses=errors(401, 503) | NOT_FOUND | CONFLICT)
async def cancel_batch(request: Request, batch_id: str) -> Batch:
    """Stop a batch; what is answered is kept."""
    service = service_of(request)
    record = await asyncio.to_thread(service.batches.cancel, batch_id)
    service.worker.wake()
    return _shown(record)


def _shown(record: BatchRecord) -> Batch:
    return Batch.model_validate(
        {
            "id": record.id,
            "endpoint": record.endpoint,
            "model": record.model,
            "errors": None if record.errors is None else BatchErrors(data=json.loads(record.errors)),
            "input_file_id": record.input_file_id,
            "completion_window": record.completion_window,
            "status": record.status,
            "output_file_id": record.output_file_id,
            "error_file_id": record.error_file_id,
            "created_at": record.created_at,
            "in_progress_at": record.in_progress_at,
            "expires_at": record.expires_at,
            "finalizing_at": record.finalizing_at,
            "completed_at": record.completed_at,
            "failed_at": record.failed_at,
            "expired_at": record.expired_at,
            "cancelling_at": record.cancelling_at,
            "cancelled_at": record.cancelled_at,
            "request_counts": RequestCounts(total=record.total, completed=record.completed, failed=record.failed),
            "metadata": None if record.metadata is None else json.loads(record.metadata),
        }
    )
