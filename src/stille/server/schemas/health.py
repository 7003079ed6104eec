"""Body of /health and /ready."""

from typing import Literal

from stille.server.schemas.base import ResponseBody


class Health(ResponseBody):
    status: Literal["ok"] = "ok"
