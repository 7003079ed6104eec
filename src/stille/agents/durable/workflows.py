"""Runs workflows in this process."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Any

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, PortableWorkflowError, SetWorkflowID
from dbos import error as dbos_error
from sqlalchemy import exc

from stille.agents.approvals import Approval, Approvals
from stille.agents.database import LOOK_S, SQLITE_ARGUMENTS, Database, Watch
from stille.agents.durable.journal import DurableJournal
from stille.agents.durable.signals import Signals
from stille.agents.durable.workflow import Workflow, version_of
from stille.agents.effects import EffectRecord, Effects, decode_error, encode_error
from stille.agents.errors import AgentError
from stille.agents.runs import RunStore
from stille.agents.types import Json
from stille.errors import ConfigError, InvalidRequestError

logger = logging.getLogger(__name__)
NAME = "stille"  # of the application, to DBOS
QUEUE = "stille"


class Workflows:
    """Runs workflows in this process, as an async context manager. One may be open in a process at a time.

    Args:
        database: path of a SQLite file, `postgresql://` URL; None: $STILLE_HOME/agents/runs.db.
        version: of the code. A run goes on only under the version that it was started with. None: a hash of the
            workflows' source.
        interval_s: between two looks into the database for what others did.
        recover_s: between two looks for runs of processes that died.

    Raises:
        ConfigError: two workflows of one name, another Workflows is open, or a database that cannot be used.
    """

    _open: Workflows | None = None

    def __init__(
        self,
        workflows: Sequence[Workflow],
        database: str | os.PathLike[str] | None = None,
        *,
        version: str | None = None,
        interval_s: float = 0.1,
        recover_s: float = 5.0,
    ):
        self.workflows = {flow.name: flow for flow in workflows}
        if len(self.workflows) < len(workflows):
            raise ConfigError(f"two workflows have the same name: {sorted(flow.name for flow in workflows)}")
        self.version = version or version_of(workflows)
        self.interval_s = interval_s
        self.recover_s = recover_s
        self.database = Database(database)
        self.effects = Effects(self.database, interval_s)
        self.approvals = Approvals(self.database, interval_s)
        self.signals = Signals(self.database, interval_s)
        self.runs = RunStore(self.database)
        self._ended = Watch(self.database, self.runs.ended, interval_s)
        self._functions: dict[str, Any] = {}
        self._recovery: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Workflows:
        if Workflows._open is not None:
            raise ConfigError("another Workflows is open in this process; close it first, or give it these workflows")
        Workflows._open = self
        try:
            log = logging.getLogger("dbos")
            if not log.handlers:  # DBOS adds a handler for the console otherwise
                log.addHandler(logging.NullHandler())
            for flow in self.workflows.values():
                self._functions[flow.name] = self._register(flow)
            self._scheduled = self._register_scheduled()
            config: DBOSConfig = {
                "name": NAME,
                "system_database_url": self.database.url,
                "application_version": self.version,
                "executor_id": self.database.own(),
                "serializer": DBOSPortableJSONSerializer(),
                "log_level": "WARNING",
                "max_executor_threads": 16,
                "sys_db_pool_size": 20,
                "db_engine_kwargs": {"connect_args": dict(SQLITE_ARGUMENTS)} if self.database.sqlite else {},
                "scheduler_polling_interval_sec": min(30.0, self.recover_s),
                "notification_listener_polling_interval_sec": 0.1,  # closing waits for it
            }
            DBOS(config=config)
            DBOS.launch()
            await DBOS.register_queue_async(QUEUE, polling_interval_sec=self.interval_s, on_conflict="always_update")
            await self.recover()
            for run_id in (stranded := await self.stranded())[:10]:
                logger.warning("run %s belongs to another version of the code and waits for it", run_id)
            if len(stranded) > 10:
                logger.warning("and so do %d more", len(stranded) - 10)
            self._recovery = asyncio.create_task(self._keep_recovering())
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()

    async def close(self) -> None:
        """Finish the effects that were begun, and leave the rest of the runs to the next process. Who waits for a
        result in this one gets an AgentError."""
        if self._recovery is not None:
            self._recovery.cancel()
        await self.effects.settle()
        with ThreadPoolExecutor(1) as own:  # the loop's default one may be DBOS's, which it shuts down
            await asyncio.get_running_loop().run_in_executor(own, partial(DBOS.destroy, destroy_registry=True))
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio"))
        self.database.close()
        Workflows._open = None

    # Runs

    async def start(self, flow: Workflow, *args: Any, run_id: str | None = None, **kwargs: Any) -> str:
        """Start a run, and return its id. With an id that exists already nothing is started."""
        return await self.enqueue(flow, run_id, flow.dump(args, kwargs))

    async def result(self, run_id: str) -> Json:
        """Wait for the end of a run; what it gave.

        Raises:
            AgentError: there is no such run, or it was cancelled; else whatever the run raised.
        """
        if not await self.database.call(self.runs.has_ended, run_id):
            await self._ended.wait(run_id)

        async def fetch() -> Any:
            handle = await DBOS.retrieve_workflow_async(run_id)
            return await handle.get_result(polling_interval_sec=self.interval_s)

        try:
            return await _outside(fetch())
        except PortableWorkflowError as error:
            data = {"type": error.name, "message": error.message, "attributes": error.data}
            raise decode_error(data) from error
        except dbos_error.DBOSException as error:
            raise AgentError(f"run {run_id}: {error}") from error

    async def run(self, flow: Workflow, *args: Any, run_id: str | None = None, **kwargs: Any) -> Json:
        """Start a run and wait for its result."""
        return await self.result(await self.start(flow, *args, run_id=run_id, **kwargs))

    async def cancel(self, run_id: str) -> None:
        """Stop a run and forbid its next steps. An effect that was begun is finished and recorded all the same."""
        await DBOS.cancel_workflow_async(run_id)

    async def resume(self, run_id: str) -> None:
        """Go on with a run that was cancelled."""
        await DBOS.resume_workflow_async(run_id, queue_name=QUEUE)

    async def send(self, run_id: str, name: str, value: Any, key: str | None = None) -> None:
        """Send a signal to a run, which gets it from `receive`; with the same key it is sent once."""
        await self.database.call(self.runs.has_ended, run_id)  # raises if there is no such run
        await self.database.call(self.signals.send, run_id, name, value, uuid.uuid4().hex if key is None else key)

    # People

    def approve(self, run_id: str, by: str, note: str = "", id: str | None = None) -> Approval:
        """See `Approvals.decide`; any other process may do it as well."""
        return self.approvals.decide(run_id, "approve", by, note, id)

    def reject(self, run_id: str, by: str, note: str = "", id: str | None = None) -> Approval:
        """See `Approvals.decide`."""
        return self.approvals.decide(run_id, "reject", by, note, id)

    def resolve(self, key: str, happened: bool, result: Json = None, by: str = "operator") -> EffectRecord:
        """See `Effects.resolve`."""
        return self.effects.resolve(key, happened, result, by)

    # Schedules

    async def schedule(self, name: str, cron: str, flow: Workflow, *args: Any, **kwargs: Any) -> None:
        """Start a run at every time of a cron expression (UTC; six fields: with seconds). Its id is name@time, so
        several processes start it once. Replaces the schedule of that name."""
        context = {"schedule": name, "flow": flow.name, "inputs": flow.dump(args, kwargs)}
        try:
            await DBOS.apply_schedules_async(
                [{"schedule_name": name, "workflow_fn": self._scheduled, "schedule": cron, "context": context}]
            )
        except dbos_error.DBOSException as error:
            raise InvalidRequestError(f"schedule {name}: {error}") from error

    async def unschedule(self, name: str) -> None:
        await DBOS.delete_schedule_async(name)

    # Recovery

    async def recover(self, patience_s: float = 0.0) -> int:
        """Take up the runs of processes that died; their number.

        Args:
            patience_s: they have to be dead so long, in case that only a connection of theirs broke.
        """
        dead = await self.database.call(self.runs.dead_executors, self.version)
        if dead and patience_s:
            await asyncio.sleep(patience_s)
            still = await self.database.call(self.runs.dead_executors, self.version)
            dead = [name for name in dead if name in still]
        return len(await asyncio.to_thread(DBOS._recover_pending_workflows, dead)) if dead else 0

    async def stranded(self) -> list[str]:
        """Runs that wait for a process with the code that they were started under."""
        return await self.database.call(self.runs.stranded, self.version)

    async def _keep_recovering(self) -> None:
        patience_s = 0.0 if self.database.sqlite else 2 * LOOK_S
        looked = time.monotonic()
        while True:
            await asyncio.sleep(min(LOOK_S, self.recover_s))
            await self.database.call(self.database.own)  # others have to see that this process lives
            if time.monotonic() - looked >= self.recover_s:
                try:
                    await self.recover(patience_s)
                except exc.OperationalError as error:
                    logger.warning("cannot look for runs to take up: %s", error)
                looked = time.monotonic()

    # DBOS

    def _register(self, flow: Workflow) -> Any:
        async def run(inputs: dict[str, Json]) -> Json:
            run_id = str(DBOS.workflow_id)
            recorded = await self.database.call(self.runs.step_numbers, run_id)
            journal = DurableJournal(self, run_id, recorded)
            try:
                return await flow.run(journal, inputs)
            except Exception as error:
                encoded = encode_error(error)
                error.data = encoded["attributes"]  # type: ignore[attr-defined]  # DBOS stores it
                raise

        return DBOS.workflow(name=flow.name, max_recovery_attempts=None)(run)

    def _register_scheduled(self) -> Any:
        async def start(when: datetime | str, context: Any) -> None:
            flow = self.workflows.get(context["flow"])
            if flow is None:
                raise AgentError(f"schedule {context['schedule']}: no workflow {context['flow']} in this process")
            time = when if isinstance(when, str) else when.isoformat()
            await self.enqueue(flow, f"{context['schedule']}@{time}", context["inputs"])

        return DBOS.workflow(name="stille.scheduled", max_recovery_attempts=None)(start)

    async def enqueue(self, flow: Workflow, run_id: str | None, inputs: dict[str, Json]) -> str:
        """As `start`, with the inputs as JSON."""
        if self.workflows.get(flow.name) is not flow:
            raise ConfigError(f"workflow {flow.name} is not among those of this Workflows: {sorted(self.workflows)}")

        async def enqueue() -> str:
            with SetWorkflowID(run_id) if run_id is not None else contextlib.nullcontext():
                handle = await DBOS.enqueue_workflow_async(QUEUE, self._functions[flow.name], inputs)
            return handle.get_workflow_id()

        return await _outside(enqueue())


async def _outside(coroutine: Any) -> Any:
    """Await a coroutine that DBOS does not take for a part of the workflow or step that asks for it."""
    return await contextvars.Context().run(asyncio.create_task, coroutine)
