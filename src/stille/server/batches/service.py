"""The files and batches of one server."""

import asyncio
from pathlib import Path

from starlette.types import ASGIApp

from stille.server.batches.database import Database
from stille.server.batches.files import FileStore
from stille.server.batches.store import BatchStore
from stille.server.batches.worker import BatchWorker
from stille.server.state import ServerState


class BatchService:
    """Stores and the worker over them.

    Args:
        app: answers the lines, as it answers clients.
        state: of the same server.
        directory: locked for this server.

    Attributes:
        files: what was uploaded and written.
        batches: what was asked for.
        worker: does it; wake it after a change.

    Raises:
        ConfigError: the directory cannot be used.
    """

    def __init__(self, app: ASGIApp, state: ServerState, directory: Path):
        self._database = Database(directory)
        self.files = FileStore(self._database, directory / "files", state.settings.max_files)
        self.batches = BatchStore(self._database)
        self.worker = BatchWorker(app, state, self.batches, self.files)

    async def close(self) -> None:
        """Stop the worker and close the stores. What was not finished goes on at the next start."""
        await self.worker.stop()
        await asyncio.to_thread(self._database.close)
