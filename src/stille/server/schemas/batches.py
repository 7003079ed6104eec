"""Bodies of /v1/batches."""

from typing import Annotated, Literal

from pydantic import Field

from stille.server.schemas.base import RequestBody, ResponseBody
from stille.server.schemas.files import ExpiresAfter

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
Status = Literal["validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"]
_KEY = Annotated[str, Field(max_length=64)]
_VALUE = Annotated[str, Field(max_length=512)]


class BatchRequest(RequestBody):
    """Asks for the answers to the requests in a file."""

    input_file_id: Annotated[str, Field(min_length=1, max_length=100)] = Field(
        description="An uploaded file of purpose 'batch', with one request per line."
    )
    endpoint: Endpoint = Field(description="What all requests of the file are for.")
    completion_window: Literal["24h"] = Field(description="What is not answered within it expires.")
    metadata: Annotated[dict[_KEY, _VALUE], Field(max_length=16)] | None = Field(
        None, description="Comes back with the batch."
    )
    output_expires_after: ExpiresAfter | None = Field(
        None, description="When the files with the answers are removed; default: after 30 days."
    )


class RequestCounts(ResponseBody):
    """Lines of the input; those that expired or were cancelled are neither completed nor failed."""

    total: int
    completed: int
    failed: int


class BatchError(ResponseBody):
    code: str
    message: str
    line: int | None = Field(description="Counted from 1.")
    param: str | None


class BatchErrors(ResponseBody):
    object: Literal["list"] = "list"
    data: list[BatchError]


class Batch(ResponseBody):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(ResponseBody):
    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool
