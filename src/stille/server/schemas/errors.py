"""The OpenAI error body."""

from stille.server.schemas.base import ResponseBody


class ErrorDetail(ResponseBody):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(ResponseBody):
    """Body of every answer with a status of 400 or more."""

    error: ErrorDetail
