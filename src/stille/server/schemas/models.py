"""Bodies of /v1/models."""

from typing import Literal

from stille.server.schemas.base import ResponseBody


class ModelCard(ResponseBody):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    max_model_len: int


class ModelList(ResponseBody):
    object: Literal["list"] = "list"
    data: list[ModelCard]
