"""/v1/files: what batches read and write."""

import asyncio
import dataclasses
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import FileResponse

from stille.server.batches.files import FileRecord, no_file
from stille.server.batches.service import BatchService
from stille.server.batches.upload import Upload
from stille.server.errors import ApiError
from stille.server.openapi import errors
from stille.server.routes.common import state_of
from stille.server.schemas.errors import ErrorBody
from stille.server.schemas.files import MAX_KEEP_S, MIN_KEEP_S, FileDeleted, FileList, FileObject

router = APIRouter(tags=["files and batches"])

NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorBody, "description": "There is no such file or batch, or the server keeps none."}
}
CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorBody, "description": "Its state does not allow that; the message says what to do first."}
}
_UPLOAD_ERRORS = errors(400, 401, 413, 503) | NOT_FOUND
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSON Lines."},
                        "purpose": {"enum": ["batch"]},
                        "expires_after[anchor]": {"enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": MIN_KEEP_S,
                            "maximum": MAX_KEEP_S,
                            "description": "Default: 30 days.",
                        },
                    },
                }
            }
        },
    }
}


def service_of(request: Request) -> BatchService:
    """The server's files and batches; 404 if it keeps none."""
    service = state_of(request).batches
    if service is None:
        message = "This server keeps no files and batches: it has no data directory; start it with --data-dir."
        raise ApiError(404, message, code="no_data_dir")
    return service


@router.post("/v1/files", response_model=FileObject, responses=_UPLOAD_ERRORS, openapi_extra=_FORM)
async def upload_file(request: Request) -> FileObject:
    """Upload a file with the requests of a batch."""
    files = service_of(request).files
    with Upload(request.headers.get("content-type", ""), files) as upload:
        await upload.receive(request.stream())
        purpose, keep_s = _purpose(upload.fields), _keep_s(upload.fields)
        record = await asyncio.to_thread(files.upload, upload.part, upload.filename or "", purpose, keep_s)
    return _shown(record)


@router.get("/v1/files", response_model=FileList, responses=errors(400, 401) | NOT_FOUND)
async def list_files(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: Literal["batch", "batch_output"] | None = None,
) -> FileList:
    """The files, in the order of their making."""
    records, more = await asyncio.to_thread(
        service_of(request).files.page, after=after, limit=limit, newest_first=order == "desc", purpose=purpose
    )
    data = [_shown(record) for record in records]
    ends = (data[0].id, data[-1].id) if data else (None, None)
    return FileList(data=data, first_id=ends[0], last_id=ends[1], has_more=more)


@router.get("/v1/files/{file_id}", response_model=FileObject, responses=errors(401) | NOT_FOUND)
async def retrieve_file(request: Request, file_id: str) -> FileObject:
    """What is known about a file."""
    return _shown(await _record(request, file_id))


@router.get(
    "/v1/files/{file_id}/content",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {}}, "description": "The file."}}
    | errors(401)
    | NOT_FOUND,
)
async def file_content(request: Request, file_id: str) -> FileResponse:
    """What is in a file."""
    record = await _record(request, file_id)
    path = service_of(request).files.path(record.id)
    return FileResponse(path, media_type="application/octet-stream", filename=record.filename)


@router.delete("/v1/files/{file_id}", response_model=FileDeleted, responses=errors(401) | NOT_FOUND | CONFLICT)
async def delete_file(request: Request, file_id: str) -> FileDeleted:
    """Remove a file that no batch needs any more."""
    await asyncio.to_thread(service_of(request).files.delete, file_id)
    return FileDeleted(id=file_id)


async def _record(request: Request, file_id: str) -> FileRecord:
    record = await asyncio.to_thread(service_of(request).files.get, file_id)
    if record is None:
        raise no_file(file_id, "file_id")
    return record


def _shown(record: FileRecord) -> FileObject:
    return FileObject.model_validate(dataclasses.asdict(record))


def _purpose(fields: dict[str, str]) -> str:
    purpose = fields.get("purpose")
    if purpose is None:
        message = "Missing required parameter: 'purpose'."
        raise ApiError(400, message, code="missing_required_parameter", param="purpose")
    if purpose != "batch":
        message = f"Unsupported value for 'purpose': '{purpose[:100]}'; files are for batches only, send 'batch'."
        raise ApiError(400, message, code="unsupported_parameter", param="purpose")
    return purpose


def _keep_s(fields: dict[str, str]) -> int:
    anchor, seconds = fields.get("expires_after[anchor]", "created_at"), fields.get("expires_after[seconds]")
    if anchor != "created_at":
        message = f"Invalid value for 'expires_after[anchor]': '{anchor[:100]}'; it is 'created_at'."
        raise ApiError(400, message, code="invalid_value", param="expires_after[anchor]")
    if seconds is None:
        return MAX_KEEP_S
    if not (seconds.isascii() and seconds.isdigit() and len(seconds) < 10 and MIN_KEEP_S <= int(seconds) <= MAX_KEEP_S):
        message = f"Invalid value for 'expires_after[seconds]': expected {MIN_KEEP_S} to {MAX_KEEP_S}."
        raise ApiError(400, message, code="invalid_value", param="expires_after[seconds]")
    return int(seconds)
