"""The application around a site: pictures and evidence over HTTP, the pages by NiceGUI.

NiceGUI keeps its pages for the whole process, so a process has one site.
"""

from __future__ import annotations

import asyncio
import json
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from stille.errors import StilleError
from stille.web.access import Access
from stille.web.site import Site
from stille.web.wall import Picture

FRAME = "application/vnd.stille.frame"
"""Four bytes, the length of what follows as JSON (little endian); the overlay as JSON; a JPEG."""


def create_app(site: Site, host: str = "127.0.0.1", password: str | None = None) -> Access:
    """The page's application, and who may see it.

    Raises:
        ConfigError: see `Access`.
    """
    from nicegui import ui

    from stille.web.pages import install

    # NiceGUI looks through all objects for its server, at which modules that are being replaced (of torch) warn.
    warnings.filterwarnings("ignore", category=FutureWarning, module="nicegui")
    app = FastAPI(title="Stille watch", docs_url=None, redoc_url=None, openapi_url=None)
    access = Access(app, host, password)
    _add_routes(app, site)
    install(site, private=password is not None)
    ui.run_with(
        app, title="Stille", dark=True, show_welcome_message=False, gzip_middleware_factory=None, reconnect_timeout=30.0
    )
    return access


def _add_routes(app: FastAPI, site: Site) -> None:
    painter = ThreadPoolExecutor(1, "stille-page-pictures")  # one core at most, however many look

    async def newest(camera: str) -> Picture | None:
        return await asyncio.get_running_loop().run_in_executor(painter, site.wall.picture, camera)

    @app.exception_handler(StilleError)
    async def failed(_: Request, error: StilleError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 422)

    @app.get("/live/{camera}.jpg")
    async def still(camera: str) -> Response:
        """The newest picture, heads hidden, without overlay."""
        picture = await newest(camera)
        if picture is None:
            return JSONResponse({"error": f"there is no picture of a camera {camera!r}"}, 404)
        return Response(picture.jpeg, media_type="image/jpeg")

    @app.get("/live/{camera}")
    async def frame(camera: str, after: int = Query(0, ge=0)) -> Response:
        """Picture and overlay together; 204 if there is none but the one that the viewer has."""
        picture = await newest(camera)
        if picture is None:
            return JSONResponse({"error": f"there is no picture of a camera {camera!r}"}, 404)
        if picture.number == after:
            return Response(status_code=204)
        overlay = json.dumps({**picture.overlay, "number": picture.number}).encode()
        return Response(struct.pack("<I", len(overlay)) + overlay + picture.jpeg, media_type=FRAME)

    @app.get("/events/{id}/{what}")
    def evidence(id: str, what: Literal["snapshot", "clip"]) -> Response:
        """JPEG or MP4, in parts if the browser wants them so."""
        path = site.evidence_file(id, what)
        if path is None:
            return JSONResponse({"error": f"there is no {what} of an event {id!r}"}, 404)
        # Evidence is written once and never changes.
        return FileResponse(path, headers={"Cache-Control": "private, max-age=3600"})

    @app.get("/health")
    def health() -> Response:
        """For monitoring: 503 if a camera is away."""
        cameras = {
            one.name: {"state": one.stats.state, "fps": one.fps, "seen": one.stats.seen, "dropped": one.stats.dropped}
            for one in site.health()
        }
        away = [name for name, one in cameras.items() if one["state"] in ("offline", "failed")]
        return JSONResponse({"cameras": cameras, "away": away}, 503 if away else 200)
