"""The Model Context Protocol, in both directions: a server's tools as ours, and ours as a server."""

from __future__ import annotations

import asyncio
import fnmatch
import hmac
import json
import logging
import math
import re
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Literal

from stille.agents.errors import AgentError, PolicyError, ToolError, ToolFailedError
from stille.agents.journal import ApprovalRequest, Decision
from stille.agents.resilience import Breaker, TransientError
from stille.agents.tools import Tool, ToolContext, by_name, check_pins, digest
from stille.agents.types import Effect, Json, Labels
from stille.errors import ConfigError

if TYPE_CHECKING:
    import mcp
    import mcp_types

logger = logging.getLogger(__name__)

_KEY = "stille/idempotency-key"  # in a call's _meta; other servers ignore it
_MAX_PAGES = 100
_SESSION_LOST = "Session terminated"  # how the client tells of a server that forgot the session


@asynccontextmanager
async def mcp_tools(
    *,
    command: Sequence[str] | None = None,
    url: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    headers: Mapping[str, str] | None = None,
    prefix: str = "",
    include: Collection[str] | None = None,
    effects: Mapping[str, Effect] | None = None,
    trust_hints: bool = False,
    pinned: Mapping[str, str] | None = None,
    recheck_s: float = 60.0,
    breaker: Breaker | None = None,
    timeout_s: float = 30.0,
) -> AsyncIterator[list[Tool]]:
    """The tools of an MCP server, while the context lasts. What they give is labelled "untrusted".

    If the server goes away, calls fail until it can be reached again; a call that finds no connection opens one. Each
    time its tools have to be what they were, or every call is refused.

    Args:
        command: starts a server that is spoken to over its standard input and output. It gets `env` and little else of
            our environment.
        url: of a server with the streamable HTTP transport; `headers` go with each request.
        prefix: of the tools' names, so that those of two servers differ.
        include: the server's names of the tools to take, with wildcards; None: all.
        effects: of tools by the server's names; otherwise an effect has to happen "once".
        trust_hints: believe the server when it says that a tool only reads or may be repeated.
        pinned: what `digest` gave for the tools when somebody looked at them; None: what they are now is what they
            have to stay.
        recheck_s: how long a look at the server's list of tools is good for.

    Raises:
        ConfigError: neither or both of `command` and `url` are given, or a name is unknown.
        ToolFailedError: the server cannot be reached, or its tools cannot be used.
        PolicyError: its tools differ from the pinned ones.
    """
    if bool(command) == bool(url):
        raise ConfigError("mcp_tools needs either command= (a program to start) or url= (a server to call)")
    effects = effects or {}
    breaker = breaker or Breaker()

    def hinted(found: mcp_types.Tool) -> Effect:
        if not trust_hints or found.annotations is None:
            return "once"
        repeatable = "idempotent" if found.annotations.idempotent_hint else "once"
        return "none" if found.annotations.read_only_hint else repeatable

    def make(server: _Server, found: Iterable[mcp_types.Tool]) -> list[Tool]:
        tools = []
        for each in found:
            if include is not None and not any(fnmatch.fnmatchcase(each.name, pattern) for pattern in include):
                continue
            tools.append(
                Tool(
                    name=re.sub(r"[^A-Za-z0-9_-]", "_", prefix + each.name),
                    description=each.description or "",
                    parameters=each.input_schema,
                    run=_caller(server, each.name, effect := effects.get(each.name) or hinted(each)),
                    effect=effect,
                    breaker=breaker,
                    timeout_s=timeout_s,
                    returns=frozenset({"untrusted"}),
                    source=f"mcp {each.name}",
                )
            )
        return tools

    origin = (url or "").partition("?")[0] or next(iter(command or ()))  # the rest may be secret
    server = _Server(_client(command, url, env, cwd, headers), origin, make, pinned, recheck_s)
    try:
        try:
            async with asyncio.timeout(timeout_s):
                tools = (await server.connection(now=True)).tools
        except (TransientError, TimeoutError) as error:
            why = str(error) or f"no answer within {timeout_s:g} s"
            raise ToolFailedError(f"{server.origin}: {why}", started=False) from error
        names = {each.source.removeprefix("mcp ") for each in tools}
        if unknown := [each for each in (*effects, *(include or ())) if not fnmatch.filter(names, each)]:
            raise ConfigError(f"{server.origin} has no tool {', '.join(unknown)}; it has {', '.join(sorted(names))}")
        yield tools
    finally:
        await server.close()


class _Server:
    """A server and the connection to it, if there is one."""

    def __init__(
        self,
        connect: Callable[[], mcp.Client],
        origin: str,
        make: Callable[[_Server, Iterable[mcp_types.Tool]], list[Tool]],
        pinned: Mapping[str, str] | None,
        recheck_s: float,
    ):
        self.origin = origin
        self._connect = connect
        self._make = make
        self._pinned = pinned
        self._recheck_s = recheck_s
        self._connection: _Connection | None = None
        self.checked = -math.inf  # `time.monotonic()`
        self._all: set[_Connection] = set()  # those that are closing as well
        self._lock = asyncio.Lock()
        self._closed = False

    async def connection(self, *, now: bool) -> _Connection:
        """An open connection to a server whose tools are what they were; `now`: not only when they were looked at."""
        async with self._lock:
            if self._closed:
                raise ToolFailedError(f"the connection to {self.origin} was closed: mcp_tools has ended", started=False)
            connection, self._connection = self._connection, None
            if connection is not None and not connection.lost:
                if not now and time.monotonic() - self.checked < self._recheck_s:
                    self._connection = connection
                    return connection
                try:
                    return await self._check(connection)
                except TransientError:
                    logger.info("the MCP server %s went away; connecting again", self.origin)
            return await self._check(_Connection(self._connect(), self._all))

    async def _check(self, connection: _Connection) -> _Connection:
        try:
            connection.tools = self._make(self, await _listed(await connection.ready()))
            if self._pinned is None:
                self._pinned = digest(connection.tools)
            check_pins(connection.tools, self._pinned, f"the MCP server {self.origin}")
        except BaseException as error:
            connection.drop()
            if isinstance(error, AgentError) or not isinstance(error, Exception):
                raise
            if isinstance(error, TypeError):
                raise ToolFailedError(f"{self.origin}: {error}; leave it out with include=", started=False) from error
            raise TransientError(f"the MCP server cannot be reached: {_innermost(error)}", started=False) from error
        self._connection, self.checked = connection, time.monotonic()
        return connection

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(each.close() for each in self._all), return_exceptions=True)


class _Connection:
    """A client in a task of its own, because the task that opens one has to close it, and calls come from many."""

    def __init__(self, client: mcp.Client, all_: set[_Connection]):
        self.tools: list[Tool] = []
        self.lost = False
        self._users = 0
        self._unused = asyncio.Event()
        self._ready: asyncio.Future[mcp.Client] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(client))
        all_.add(self)
        self._task.add_done_callback(lambda _: all_.discard(self))

    async def _hold(self, client: mcp.Client) -> None:
        try:
            async with client:
                if not self._ready.done():
                    self._ready.set_result(client)
                await self._unused.wait()
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error if isinstance(error, Exception) else ConnectionError("cancelled"))
                self._ready.exception()  # seen, even if nobody waits any more
            else:
                logger.debug("closing an MCP connection: %r", error)
        finally:
            self.lost = True

    async def ready(self) -> mcp.Client:
        return await asyncio.shield(self._ready)

    @contextmanager
    def use(self) -> Iterator[mcp.Client]:
        self._users += 1
        try:
            yield self._ready.result()
        finally:
            self._users -= 1
            if self.lost and not self._users:
                self._unused.set()

    def drop(self) -> None:
        """Takes no new calls, and closes when those that are running have ended."""
        self.lost = True
        if not self._ready.done():
            self._task.cancel()
        elif not self._users:
            self._unused.set()

    def close(self) -> asyncio.Task[None]:
        self.drop()
        self._unused.set()
        return self._task


def _client(
    command: Sequence[str] | None,
    url: str | None,
    env: Mapping[str, str] | None,
    cwd: str | None,
    headers: Mapping[str, str] | None,
) -> Callable[[], mcp.Client]:
    import httpx2
    import mcp
    from mcp.client.streamable_http import streamable_http_client

    @asynccontextmanager
    async def over_http(url: str) -> AsyncIterator[Any]:
        timeout = httpx2.Timeout(30.0, read=300.0)  # a server may hold a stream open
        http = httpx2.AsyncClient(headers=dict(headers or {}), timeout=timeout)
        async with http, streamable_http_client(url, http_client=http) as streams:
            yield streams

    def connect() -> mcp.Client:
        if url is not None:
            return mcp.Client(over_http(url), cache=None)
        program, *arguments = list(command or ())
        start = mcp.StdioServerParameters(command=program, args=arguments, env=dict(env or {}), cwd=cwd)
        return mcp.Client(mcp.stdio_client(start, errlog=sys.__stderr__ or sys.stderr), cache=None)

    return connect


async def _listed(client: mcp.Client) -> list[mcp_types.Tool]:
    found: list[mcp_types.Tool] = []
    cursor = None
    for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        found += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return found
    raise ToolFailedError(f"the MCP server lists more than {_MAX_PAGES} pages of tools", started=False)


def _caller(server: _Server, name: str, effect: Effect) -> Callable[[Any, ToolContext], Awaitable[Json]]:
    async def call(arguments: dict[str, Json], context: ToolContext) -> Json:
        import mcp
        import mcp_types

        # Looked at each time before what cannot be repeated: a server that went away is noticed before the effect.
        connection = await server.connection(now=effect == "once")
        meta: Any = {_KEY: context.idempotency_key} if context.idempotency_key else None
        try:
            with connection.use() as client:
                result = await client.call_tool(name, arguments, meta=meta)
        except mcp.MCPError as error:
            server.checked = -math.inf
            if error.code == mcp_types.CONNECTION_CLOSED or error.message == _SESSION_LOST:
                connection.drop()
                started = error.message != _SESSION_LOST
                raise TransientError(f"the MCP server went away: {error.message}", started=started) from error
            if error.code == mcp_types.INVALID_PARAMS:
                raise ToolError(error.message) from error
            raise ToolFailedError(f"{name}: the MCP server gave error {error.code}: {error.message}") from error
        return _result(name, result)

    return call


def _result(name: str, result: mcp_types.CallToolResult) -> Json:
    texts, others = [], []
    for block in result.content:
        if block.type == "text":
            texts.append(block.text)
        elif block.type == "resource" and not hasattr(block.resource, "blob"):
            texts.append(getattr(block.resource, "text", ""))
        else:
            others.append(block.type)
    if result.is_error:
        raise ToolError("\n".join(texts) or "it failed and did not say why")
    if result.structured_content is not None:
        return result.structured_content
    if others:
        raise ToolFailedError(f"{name} gave {', '.join(others)}, but only text and JSON can be used")
    return "\n".join(texts) if texts else None


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


async def serve_mcp(
    tools: Iterable[Tool],
    *,
    name: str,
    transport: Literal["stdio", "http"] = "stdio",
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    approve: Callable[[ApprovalRequest], Awaitable[Decision]] | None = None,
) -> None:
    """Serves tools to MCP clients until it is cancelled or, over stdio, its input ends. Over HTTP at `/mcp`.

    A call has the idempotency key that the client sends (ours do), or one of its own; nothing else keeps a client from
    having an effect twice.

    Args:
        token: that clients have to send, as `Authorization: Bearer ...`. Must be given if others than this machine can
            connect.
        approve: asked for calls that need approval; None: they are refused.

    Raises:
        ConfigError: a tool gives secrets, or the server would be open to everybody.
    """
    from mcp.server import Server
    from mcp.server.stdio import stdio_server

    named = by_name(tools)
    if secret := [each.name for each in named.values() if "secret" in each.returns]:
        raise ConfigError(f"{', '.join(secret)} may give secrets, which no model behind a client may see; leave it out")
    if transport == "http" and token is None and host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(f"at {host} everybody could call the tools: give token=, or listen at 127.0.0.1")
    list_tools, call_tool = _handlers(named, name, approve)
    server = Server(name, on_list_tools=list_tools, on_call_tool=call_tool)
    if transport == "stdio":
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())
    else:
        import uvicorn

        app = _guarded(server.streamable_http_app(host=host), token)
        config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=1)
        http = uvicorn.Server(config)
        running = asyncio.ensure_future(http.serve())
        try:
            await asyncio.shield(running)
        finally:
            http.should_exit = True
            await running


def _handlers(
    named: Mapping[str, Tool], server_name: str, approve: Callable[[ApprovalRequest], Awaitable[Decision]] | None
) -> tuple[Any, Any]:
    import mcp
    import mcp_types
    from mcp_types.version import MODERN_PROTOCOL_VERSIONS

    async def list_tools(context: Any, params: Any) -> mcp_types.ListToolsResult:
        return mcp_types.ListToolsResult(
            tools=[
                mcp_types.Tool(
                    name=each.name,
                    description=each.description,
                    input_schema=dict(each.parameters),
                    annotations=mcp_types.ToolAnnotations(
                        read_only_hint=each.effect == "none", idempotent_hint=each.effect == "idempotent"
                    ),
                )
                for each in named.values()
            ]
        )

    async def run(tool: Tool, arguments: dict[str, Any], call: ToolContext) -> Json:
        if tool.needs_approval(arguments):
            if approve is None:
                raise PolicyError(f"{tool.name} needs a person's approval, and nobody can be asked here")
            reason = f"a client of the MCP server {server_name} wants it"
            request = ApprovalRequest(id=call.call_id, tool=tool.name, arguments=tool.checked(arguments), reason=reason)
            decision = await approve(request)
            if decision.verdict != "approve":
                raise PolicyError(
                    f"{tool.name} was not allowed by {decision.by}: {decision.note or 'without a reason'}"
                )
        return await tool.call(arguments, call)

    async def call_tool(context: Any, params: mcp_types.CallToolRequestParams) -> mcp_types.CallToolResult:
        tool = named.get(params.name)
        if tool is None:
            message = f"there is no tool {params.name!r}; there are {', '.join(named)}"
            raise mcp.MCPError(mcp_types.INVALID_PARAMS, message)
        id_ = uuid.uuid4().hex
        key = str((context.meta or {}).get(_KEY) or id_)
        labels: Labels = frozenset({"untrusted"})
        call = ToolContext(run_id=f"mcp {server_name}", call_id=id_, idempotency_key=key, labels=labels)
        try:
            result = await run(tool, params.arguments or {}, call)
        except AgentError as error:
            text = mcp_types.TextContent(text=str(error))
            return mcp_types.CallToolResult(content=[text], is_error=True)
        if result is None:
            return mcp_types.CallToolResult(content=[])
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        any_json = context.protocol_version in MODERN_PROTOCOL_VERSIONS  # before, only objects
        structured = result if any_json or isinstance(result, dict) else {"result": result}
        return mcp_types.CallToolResult(content=[mcp_types.TextContent(text=text)], structured_content=structured)

    return list_tools, call_tool


def _guarded(app: Any, token: str | None) -> Any:
    """The app, for those who know the token."""
    if token is None:
        return app
    from starlette.responses import PlainTextResponse

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] == "http" and not hmac.compare_digest(given, b"Bearer " + token.encode()):
            refusal = PlainTextResponse("a bearer token is needed", 401, {"WWW-Authenticate": "Bearer"})
            await refusal(scope, receive, send)
        else:
            await app(scope, receive, send)

    return guarded
