"""The conversation behind `stille chat`: history, commands, and two places that answers can come from."""

from __future__ import annotations

import http.client
import json
import sys
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from stille._version import __version__
from stille.errors import InvalidRequestError, ModelNotFoundError, StilleError

if TYPE_CHECKING:
    from stille.cli.session import Session

HELP = """\
/help            this list
/reset           forget the conversation
/system TEXT     new instructions, and forget the conversation; without TEXT: show them
/save FILE       write the conversation as JSON
/quit            leave (so does Ctrl-D)
Ctrl-C stops the current answer. End a line with \\ to go on in the next."""


@dataclass(frozen=True)
class Sampling:
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int | None


@dataclass
class Piece:
    """A part of an answer: its text and the number of tokens it took."""

    text: str
    tokens: int


class Backend(Protocol):
    name: str

    def answer(self, messages: list[dict[str, str]], sampling: Sampling) -> Iterator[Piece]:
        """Stream the answer to a conversation; closing the iterator stops it."""
        ...


class LocalBackend:
    """Answers from an engine in this process."""

    def __init__(self, session: Session):
        self.session = session
        self.name = session.engine.model_name

    def answer(self, messages: list[dict[str, str]], sampling: Sampling) -> Iterator[Piece]:
        from stille.engine.sampling_params import SamplingParams

        prompt = self.session.engine.render_chat(messages)
        params = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
        )
        for delta in self.session.stream(prompt, params):
            yield Piece(delta.text, len(delta.token_ids))


class HttpBackend:
    """Answers from an OpenAI-compatible server. Sends only standard parameters when the others are off."""

    def __init__(self, url: str, api_key: str | None, model: str | None):
        parts = urllib.parse.urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidRequestError(f"--url is {url!r}; expected something like http://127.0.0.1:8000", "url")
        self.parts = parts
        self.base = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self.headers = {"Content-Type": "application/json"}
        if api_key:
            self.headers["Authorization"] = f"Bearer {api_key}"
        self.name = model or self._first_model()

    def answer(self, messages: list[dict[str, str]], sampling: Sampling) -> Iterator[Piece]:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": messages,
            "stream": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": sampling.seed,
            "top_k": sampling.top_k or None,
            "repetition_penalty": sampling.repetition_penalty if sampling.repetition_penalty != 1 else None,
        }
        body = {key: value for key, value in body.items() if value is not None}
        connection, response = self._request("POST", "/chat/completions", json.dumps(body))
        try:
            for line in response:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise StilleError(f"the server stopped: {event['error'].get('message')}")
                for choice in event["choices"]:
                    if text := choice["delta"].get("content"):
                        yield Piece(text, 1)
        finally:
            connection.close()

    def _first_model(self) -> str:
        connection, response = self._request("GET", "/models", None)
        try:
            models = json.loads(response.read())["data"]
        except (ValueError, KeyError, TypeError) as error:
            raise StilleError(f"{self.parts.geturl()} does not answer like an OpenAI-compatible server") from error
        finally:
            connection.close()
        if not models:
            raise ModelNotFoundError(f"{self.parts.geturl()} serves no model")
        return models[0]["id"]

    def _request(
        self, method: str, path: str, body: str | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self.parts.scheme == "https" else http.client.HTTPConnection
        assert self.parts.hostname is not None
        connection = kind(self.parts.hostname, self.parts.port, timeout=600)
        try:
            connection.request(method, self.base + path, body, self.headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise StilleError(f"the server answered {response.status}: {_server_message(response.read())}")
        except OSError as error:
            connection.close()
            raise StilleError(f"no server at {self.parts.geturl()} ({error}); start one with: stille serve") from error
        except StilleError:
            connection.close()
            raise
        return connection, response


def _server_message(body: bytes) -> str:
    try:
        return json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


class Conversation:
    """History and commands. Answers go to stdout; everything else does so only in a terminal."""

    def __init__(self, backend: Backend, sampling: Sampling, system: str | None):
        self.backend = backend
        self.sampling = sampling
        self.system = system
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the instructions."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def pipe(self, lines: TextIO) -> bool:
        """One message per line; answers on stdout. False if a message could not be answered."""
        for line in lines:
            if line.strip():
                try:
                    self._turn(line.strip(), decorate=False)
                except StilleError as error:
                    print(f"error: {error}", file=sys.stderr)
                    return False
        return True

    def interact(self) -> None:
        """Read, answer, repeat, until the user leaves."""
        print(f"stille {__version__} · {self.backend.name} · /help for commands, Ctrl-D to leave")
        while True:
            try:
                text = self._read()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print("\n(/quit or Ctrl-D leaves)")
                continue
            if not text:
                continue
            if text.startswith("/"):
                if not self._command(text):
                    return
                continue
            try:
                self._turn(text, decorate=True)
            except StilleError as error:
                print(_paint("31", f"{error}"))
                print("(/reset starts over)")

    def _read(self) -> str:
        lines = []
        prompt = "\n> "
        while True:
            line = input(prompt)
            if not line.endswith("\\"):
                return "\n".join([*lines, line]).strip()
            lines.append(line[:-1])
            prompt = ". "

    def _command(self, text: str) -> bool:
        name, _, rest = text.partition(" ")
        rest = rest.strip()
        if name in ("/quit", "/exit"):
            return False
        if name == "/help":
            print(HELP)
        elif name == "/reset":
            self.reset()
            print("(forgotten)")
        elif name == "/system":
            if rest:
                self.system = rest
                self.reset()
                print("(new instructions; conversation forgotten)")
            else:
                print(self.system or "(no instructions)")
        elif name == "/save":
            self._save(rest)
        else:
            print(f"{name} is not a command; /help lists them")
        return True

    def _save(self, target: str) -> None:
        if not target:
            print("/save needs a file name")
            return
        try:
            text = json.dumps(self.messages, ensure_ascii=False, indent=2)
            Path(target).expanduser().write_text(text + "\n", encoding="utf-8")
            print(f"(saved {len(self.messages)} messages to {target})")
        except OSError as error:
            print(_paint("31", f"not saved: {error}"))

    def _turn(self, text: str, decorate: bool) -> None:
        self.messages.append({"role": "user", "content": text})
        answer, tokens, interrupted = "", 0, False
        started = time.perf_counter()
        first = last = started
        pieces = self.backend.answer(self.messages, self.sampling)
        try:
            for piece in pieces:
                last = time.perf_counter()
                if not tokens:
                    first = last
                tokens += piece.tokens
                answer += piece.text
                sys.stdout.write(piece.text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            interrupted = True
            if not decorate:
                raise
        except StilleError:
            self.messages.pop()
            raise
        finally:
            pieces.close()  # pyright: ignore[reportAttributeAccessIssue]
        self.messages.append({"role": "assistant", "content": answer})
        sys.stdout.write("\n")
        if decorate:
            rate = f" · {(tokens - 1) / (last - first):.1f} tok/s" if tokens > 1 and last > first else ""
            stopped = " · stopped" if interrupted else ""
            print(_paint("2", f"[{tokens} tokens{rate} · first after {first - started:.2f} s{stopped}]"))


def _paint(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if sys.stdout.isatty() else text
