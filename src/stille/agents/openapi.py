"""Tools from an OpenAPI 3.0 or 3.1 document: one for each operation that speaks JSON."""

from __future__ import annotations

import fnmatch
import json
import logging
import re
import urllib.parse
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic_core import to_jsonable_python

from stille.agents.errors import ToolError, ToolFailedError
from stille.agents.resilience import Breaker, TransientError, retry_after_s
from stille.agents.tools import Tool, ToolContext, check_pins
from stille.agents.types import Effect, Json, Labels
from stille.errors import ConfigError

logger = logging.getLogger(__name__)

_METHODS = ("get", "head", "post", "put", "patch", "delete")
_OWN_HEADERS = {"accept", "content-type", "authorization"}  # which OpenAPI says are no parameters
_SEPARATORS = {"form": ",", "spaceDelimited": " ", "pipeDelimited": "|"}
_ONLY_OPENAPI = {"nullable", "discriminator", "xml", "externalDocs", "example", "readOnly", "writeOnly", "deprecated"}
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


async def tools_from_openapi(
    document: Mapping[str, Any] | str | Path,
    *,
    base_url: str | None = None,
    headers: Mapping[str, str] | None = None,
    include: Collection[str] | None = None,
    exclude: Collection[str] = (),
    effects: Mapping[str, Effect] | None = None,
    idempotent: Collection[str] = (),
    returns: Labels = frozenset({"untrusted"}),
    pinned: Mapping[str, str] | None = None,
    client: httpx.AsyncClient | None = None,
    breaker: Breaker | None = None,
    timeout_s: float = 30.0,
) -> list[Tool]:
    """Tools for a document's operations, named by their operationId.

    Path, query, header and cookie parameters and the fields of a JSON body become one flat set of parameters. Reading
    (GET, HEAD) has no effect; anything else is "idempotent" if the operation takes an Idempotency-Key header, which is
    filled in, and otherwise has to happen "once". A 4xx answer is a ToolError with what the other side says; 429, 5xx
    and a broken connection are tried again, as far as the effect allows it.

    Args:
        document: parsed, or the path or URL of a JSON or YAML file.
        base_url: where the operations are; None: the document's first server.
        headers: sent with each call, such as an Authorization; never shown to a model.
        include: names of tools to make, with wildcards; None: all. Operations without JSON are left out.
        exclude: names of those not to make, with wildcards.
        effects: of tools by their names, instead of what is said above.
        idempotent: names of tools whose operation takes an Idempotency-Key although the document does not say so.
        pinned: what `digest` gave for the tools when somebody looked at them.
        client: used for the calls and not closed; None: a connection for each call.
        breaker: for the whole service; None: one of its own.

    Raises:
        ConfigError: the document cannot be used, or a name is unknown.
        PolicyError: the tools differ from the pinned ones.
    """
    origin = "the OpenAPI document" if isinstance(document, Mapping) else str(document)
    url = origin if re.match(r"https?://", origin) else None
    found = _Document(to_jsonable_python(document if isinstance(document, Mapping) else await _load(origin, client)))
    tls = httpx.create_ssl_context() if client is None else None  # made once: it takes long
    breaker = breaker or Breaker()
    effects = effects or {}
    tools: list[Tool] = []
    for operation in found.operations(base_url, url):
        if any(fnmatch.fnmatchcase(operation.name, each) for each in exclude):
            continue
        if include is not None and not any(fnmatch.fnmatchcase(operation.name, each) for each in include):
            continue
        if operation.problem:
            logger.warning("%s: %s is left out: %s", origin, operation.name, operation.problem)
            continue
        if operation.name in idempotent and operation.key_header is None:
            operation.key_header = "Idempotency-Key"
        default: Effect = "once" if operation.key_header is None else "idempotent"
        default = "none" if operation.method in ("get", "head") else default
        tools.append(
            Tool(
                name=operation.name,
                description=operation.description,
                parameters=operation.schema,
                run=_caller(operation, headers or {}, client, tls),
                effect=effects.get(operation.name, default),
                breaker=breaker,
                timeout_s=timeout_s,
                returns=returns,
                source=operation.source(with_server=base_url is None),
            )
        )
    names = {each.name for each in tools}
    wanted = (*effects, *idempotent, *(include or ()))
    if unknown := [each for each in wanted if not any(fnmatch.fnmatchcase(name, each) for name in names)]:
        raise ConfigError(f"{origin}: no tool is called {', '.join(unknown)}; there are {', '.join(sorted(names))}")
    if pinned is not None:
        check_pins(tools, pinned, origin)
    return tools


@dataclass(frozen=True)
class _Place:
    """Where an argument goes: `at` is path, query, header, cookie, field (of the body) or body."""

    at: str
    name: str
    style: str = ""
    explode: bool = False
    as_json: bool = False


@dataclass
class _Operation:
    name: str
    method: str
    server: str
    path: str
    description: str
    schema: dict[str, Any]
    places: dict[str, _Place]
    needs_body: bool
    key_header: str | None
    problem: str | None  # why it cannot be a tool

    def source(self, with_server: bool) -> str:
        places = [f"{name}={each}" for name, each in sorted(self.places.items())]
        return " ".join([self.method, (self.server if with_server else "") + self.path, str(self.key_header), *places])


class _Document:
    """Reads operations out of a document."""

    def __init__(self, root: Any):
        version = root.get("openapi") if isinstance(root, dict) else None
        if not isinstance(version, str) or not version.startswith(("3.0", "3.1")):
            raise ConfigError(f"expected an OpenAPI 3.0 or 3.1 document; got version {version!r}")
        self._root = root
        self.is_30 = version.startswith("3.0")

    def operations(self, base_url: str | None, document_url: str | None) -> Iterator[_Operation]:
        taken: set[str] = set()
        for path, item in self._root.get("paths", {}).items():
            item = self._follow(item)
            for method in (each for each in _METHODS if each in item):
                operation = item[method]
                name = re.sub(r"[^A-Za-z0-9_-]+", "_", operation.get("operationId") or f"{method}_{path}").strip("_")
                name = _free(name[:60], taken)
                servers = operation.get("servers") or item.get("servers") or self._root.get("servers") or [{"url": "/"}]
                server = base_url or _server(servers[0], document_url)
                try:
                    yield self._operation(name, method, server.rstrip("/"), path, item, operation)
                except (KeyError, TypeError, AttributeError) as error:
                    raise ConfigError(f"{method} {path} of the OpenAPI document is malformed: {error!r}") from error

    def _operation(
        self, name: str, method: str, server: str, path: str, item: dict[str, Any], operation: dict[str, Any]
    ) -> _Operation:
        schemas = _Schemas(self)
        properties: dict[str, Any] = {}
        required: list[str] = []
        places: dict[str, _Place] = {}
        key_header, problem = None, None

        def add(place: _Place, schema: dict[str, Any], needed: bool) -> None:
            given = re.sub(r"[^A-Za-z0-9_.-]+", "_", place.name)
            origin = "body" if place.at == "field" else place.at
            given = _free(given if given not in properties else f"{origin}_{given}", properties)
            properties[given], places[given] = schema, place
            if needed:
                required.append(given)

        parameters = [self._follow(each) for each in (*item.get("parameters", ()), *operation.get("parameters", ()))]
        # An operation's own parameter replaces the path's.
        for each in {(p["in"], p["name"]): p for p in parameters}.values():
            at, called = each["in"], each["name"]
            if at == "header" and called.lower() in _OWN_HEADERS:
                continue
            if at == "header" and called.lower() in ("idempotency-key", "x-idempotency-key"):
                key_header = called
                continue
            style = each.get("style", "form" if at in ("query", "cookie") else "simple")
            content = next(iter(each.get("content", {}).values()), None)
            place = _Place(at, called, style, each.get("explode", style == "form"), content is not None)
            schema = schemas.convert(each.get("schema", {}) if content is None else content.get("schema", {}))
            if each.get("description"):
                schema = {**schema, "description": each["description"]}
            add(place, schema, bool(each.get("required")) or at == "path")

        body = self._follow(operation.get("requestBody", {}))
        needs_body = bool(body.get("required"))
        if body:
            media = [v for k, v in body.get("content", {}).items() if re.match(r"application/([\w.-]+\+)?json\b", k)]
            schema = media[0].get("schema", {}) if media else {}
            if media and _has_fields(raw := self._follow(schema), needs_body):
                fields = schemas.convert(raw)
                for field, each in fields["properties"].items():
                    add(_Place("field", field), each, field in fields.get("required", ()))
            elif media:
                add(_Place("body", "body"), schemas.convert(schema), needs_body)
            elif needs_body:
                problem = f"its body is none of JSON but {', '.join(body.get('content', {})) or 'unknown'}"
        schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        if schemas.definitions:
            schema["$defs"] = schemas.definitions
        texts = [operation.get("summary"), operation.get("description")]
        description = "\n\n".join(each.strip() for each in texts if each) or f"{method.upper()} {path}"
        return _Operation(name, method, server, path, description, schema, places, needs_body, key_header, problem)

    def _follow(self, node: Any) -> Any:
        for _ in range(20):
            if not (isinstance(node, dict) and isinstance(node.get("$ref"), str)):
                return node
            node = self.at(node["$ref"])
        raise ConfigError(f"the OpenAPI document's reference {node['$ref']!r} goes round in circles")

    def at(self, ref: str) -> Any:
        """What a reference within the document points to."""
        if not ref.startswith("#/"):
            raise ConfigError(f"reference {ref!r} leaves the OpenAPI document; bundle it into one file first")
        node = self._root
        for part in ref[2:].split("/"):
            part = urllib.parse.unquote(part).replace("~1", "/").replace("~0", "~")
            try:
                node = node[int(part)] if isinstance(node, list) else node[part]
            except (KeyError, IndexError, ValueError, TypeError):
                raise ConfigError(f"the OpenAPI document's reference {ref!r} leads nowhere") from None
        return node


class _Schemas:
    """Turns an operation's schemas into plain JSON schemas, collecting what they refer to."""

    def __init__(self, document: _Document):
        self._document = document
        self._names: dict[str, str] = {}
        self.definitions: dict[str, Any] = {}

    def convert(self, schema: Any) -> Any:
        if not isinstance(schema, dict):
            return schema
        if isinstance(ref := schema.get("$ref"), str):
            siblings = {} if self._document.is_30 else {k: v for k, v in schema.items() if k != "$ref"}
            return {"$ref": f"#/$defs/{self._define(ref)}", **self.convert(siblings)}
        result: dict[str, Any] = {}
        for name, value in schema.items():
            if name in _ONLY_OPENAPI or name.startswith("x-"):
                continue
            if name in ("properties", "patternProperties", "$defs", "dependentSchemas"):
                visible = {k: v for k, v in value.items() if not (isinstance(v, dict) and v.get("readOnly"))}
                result[name] = {k: self.convert(v) for k, v in visible.items()}
            elif name in ("default", "const", "enum", "examples"):
                result[name] = value
            elif isinstance(value, list):
                result[name] = [self.convert(each) for each in value]
            else:
                result[name] = self.convert(value)
        if "required" in result and "properties" in schema:
            hidden = schema["properties"].keys() - result["properties"].keys()
            result["required"] = [each for each in result["required"] if each not in hidden]
        return self._from_30(schema, result) if self._document.is_30 else result

    def _define(self, ref: str) -> str:
        if ref not in self._names:
            name = self._names[ref] = _free(re.sub(r"\W+", "_", ref.rpartition("/")[2]), self.definitions)
            self.definitions[name] = {}  # it may refer to itself
            self.definitions[name] = self.convert(self._document.at(ref))
        return self._names[ref]

    @staticmethod
    def _from_30(schema: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
        for bound, limit in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if isinstance(result.get(bound), bool) and result.pop(bound) and limit in result:
                result[bound] = result.pop(limit)
        if schema.get("nullable"):
            if "enum" in result and None not in result["enum"]:
                result["enum"] = [*result["enum"], None]
            if isinstance(result.get("type"), str):
                result["type"] = [result["type"], "null"]
            elif result.keys() & {"allOf", "oneOf", "anyOf"}:
                result = {"anyOf": [result, {"type": "null"}]}
        return result


def _has_fields(schema: dict[str, Any], needed: bool) -> bool:
    """Whether a body's fields can stand beside the other parameters."""
    combined = {"allOf", "oneOf", "anyOf", "not", "if", "patternProperties", "minProperties"} & schema.keys()
    is_open = schema.get("additionalProperties", False) is not False
    optional = not needed and schema.get("required")  # all or nothing: that has to stay one parameter
    return bool(schema.get("type") == "object" and schema.get("properties") and not (combined or is_open or optional))


def _free(name: str, taken: set[str] | dict[str, Any]) -> str:
    free, n = name, 2
    while free in taken:
        free, n = f"{name}_{n}", n + 1
    if isinstance(taken, set):
        taken.add(free)
    return free


def _server(server: Mapping[str, Any], document_url: str | None) -> str:
    url = server.get("url", "/")
    for name, variable in server.get("variables", {}).items():
        url = url.replace("{" + name + "}", str(variable.get("default", "")))
    url = urllib.parse.urljoin(document_url or "", url)
    if not re.match(r"https?://", url):
        raise ConfigError(f"the OpenAPI document's server {url!r} is no full URL; give base_url")
    return url


async def _load(place: str, client: httpx.AsyncClient | None) -> Any:
    try:
        if re.match(r"https?://", place):
            async with nullcontext(client) if client else httpx.AsyncClient() as http:
                text = (await http.get(place)).raise_for_status().text
        else:
            text = Path(place).read_text("utf-8")
    except (httpx.HTTPError, OSError) as error:
        raise ConfigError(f"the OpenAPI document {place} cannot be read: {error}") from error
    try:
        return json.loads(text)
    except ValueError:
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{place} is neither JSON nor YAML: {error}") from error


def _caller(operation: _Operation, headers: Mapping[str, str], client: httpx.AsyncClient | None, tls: Any) -> Any:
    async def call(arguments: dict[str, Json], context: ToolContext) -> Json:
        request = _request(operation, arguments)
        request["headers"] = {"Accept": "application/json", **headers, **request["headers"]}
        if operation.key_header is not None and operation.method not in ("get", "head"):
            if context.idempotency_key is None:
                raise ToolFailedError(f"{operation.name} needs an idempotency key in its context", started=False)
            request["headers"][operation.key_header] = context.idempotency_key
        try:
            async with nullcontext(client) if client else httpx.AsyncClient(verify=tls or True) as http:
                response = await http.request(**request, timeout=None, follow_redirects=False)
        except httpx.TransportError as error:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise TransientError(what, started=not isinstance(error, _NEVER_SENT)) from error
        return _result(response)

    return call


def _request(operation: _Operation, arguments: Mapping[str, Json]) -> dict[str, Any]:
    path = operation.path
    query: list[tuple[str, str]] = []
    headers: dict[str, str] = {}
    cookies: list[str] = []
    request: dict[str, Any] = {"method": operation.method.upper(), "headers": headers}
    fields = {name for name, place in operation.places.items() if place.at == "field"}
    if fields and (operation.needs_body or fields & arguments.keys()):
        request["json"] = {operation.places[name].name: arguments[name] for name in fields if name in arguments}
    for name, value in arguments.items():
        place = operation.places[name]
        if place.at == "path":
            text = _joined(place, value)
            if text in ("", ".", ".."):
                raise ToolError(f"{operation.name}: {name}: {text!r} cannot be part of a path")
            path = path.replace("{" + place.name + "}", urllib.parse.quote(text, safe=","))
        elif place.at == "query":
            query += _pairs(place, value)
        elif place.at == "body":
            request["json"] = value
        elif place.at in ("header", "cookie"):
            text = _joined(place, value)
            if place.at == "cookie":
                cookies.append(f"{place.name}={urllib.parse.quote(text)}")
            elif text.isprintable() and text.isascii():
                headers[place.name] = text
            else:
                raise ToolError(f"{operation.name}: {name}: {text!r} cannot be part of a header")
    if cookies:
        headers["Cookie"] = "; ".join(cookies)
    query_text = urllib.parse.urlencode(query)
    request["url"] = operation.server + path + (f"?{query_text}" if query_text else "")
    return request


def _text(value: Json) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _joined(place: _Place, value: Json) -> str:
    if place.as_json:
        return json.dumps(value)
    if isinstance(value, dict):
        items = value.items()
        return ",".join(f"{k}={_text(v)}" if place.explode else f"{k},{_text(v)}" for k, v in items)
    return ",".join(map(_text, value)) if isinstance(value, list) else _text(value)


def _pairs(place: _Place, value: Json) -> list[tuple[str, str]]:
    if not place.as_json and isinstance(value, list):
        if place.explode:
            return [(place.name, _text(each)) for each in value]
        return [(place.name, _SEPARATORS.get(place.style, ",").join(map(_text, value)))]
    if not place.as_json and isinstance(value, dict):
        if place.style == "deepObject":
            return [(f"{place.name}[{k}]", _text(v)) for k, v in value.items()]
        if place.explode:
            return [(k, _text(v)) for k, v in value.items()]
    return [(place.name, _joined(place, value))]


def _result(response: httpx.Response) -> Json:
    status, kind = response.status_code, response.headers.get("content-type", "").partition(";")[0].strip()
    if status in (408, 425, 429) or status >= 500:
        wait_s = retry_after_s(response.headers.get("retry-after"))
        raise TransientError(f"answered {status}: {_told(response)}", retry_after_s=wait_s, started=status != 429)
    if status >= 400:
        raise ToolError(f"answered {status}: {_told(response)}")
    if status >= 300:
        raise ToolFailedError(f"answered {status} to {response.headers.get('location', 'nowhere')}; not followed")
    if not response.content:
        return None
    if kind == "application/json" or kind.endswith("+json"):
        return response.json()
    if kind.startswith("text/"):
        return response.text
    raise ToolFailedError(f"answered with {kind or 'an unknown type'}, but only JSON and text can be used")


def _told(response: httpx.Response) -> str:
    """What an error's answer says: `detail` and `title` of RFC 9457, or the usual names."""
    try:
        said = response.json()
    except ValueError:
        return response.text.strip()[:500] or response.reason_phrase
    if isinstance(said, dict):
        inner = said["error"] if isinstance(said.get("error"), dict) else said
        said = next((inner[k] for k in ("detail", "message", "title", "error") if inner.get(k)), said)
    return _text(said)[:500]
