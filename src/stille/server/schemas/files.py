"""Bodies of /v1/files."""

from typing import Annotated, Literal

from pydantic import Field

from stille.server.schemas.base import Integral, RequestBody, ResponseBody

MIN_KEEP_S = 3600
MAX_KEEP_S = 30 * 24 * 3600


class ExpiresAfter(RequestBody):
    """When a file is removed."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=MIN_KEEP_S, le=MAX_KEEP_S), Integral]


class FileObject(ResponseBody):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileList(ResponseBody):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(ResponseBody):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True
