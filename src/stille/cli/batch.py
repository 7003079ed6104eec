"""Many prompts through one engine: reading them, running them side by side, writing answers that can be resumed."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from stille.errors import InvalidRequestError, StilleError

if TYPE_CHECKING:
    from stille.cli.session import Session
    from stille.engine.sampling_params import SamplingParams

JobId = int | str
_OWN_KEYS = {"id", "prompt", "messages"}


@dataclass(frozen=True)
class Job:
    """One prompt: plain text, or messages for the chat template."""

    id: JobId
    prompt: str | None
    messages: list[dict[str, str]] | None
    params: SamplingParams


def sampling(settings: Mapping[str, Any]) -> SamplingParams:
    """Checked sampling parameters; an unknown one is an error that lists the known ones."""
    from stille.engine.sampling_params import SamplingParams

    known = {field.name for field in dataclasses.fields(SamplingParams)} - {"n", "logprobs"}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise InvalidRequestError(f"{unknown[0]!r} is not a parameter; known: {', '.join(sorted(known))}", unknown[0])
    if isinstance(settings.get("grammar"), Mapping):
        from stille.engine.grammar import Grammar

        settings = {**settings, "grammar": Grammar.of(settings["grammar"])}
    return SamplingParams(**settings)


def read_schema(path: Path) -> Any:
    """A JSON schema from a file.

    Raises:
        InvalidRequestError: it cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequestError(f"the JSON schema {path} cannot be read: {error}", "json_schema") from error


def as_chat(job: Job, system: str | None) -> Job:
    """A plain prompt as a user's message, after instructions if there are any."""
    assert job.prompt is not None
    messages = [{"role": "system", "content": system}] if system else []
    return dataclasses.replace(job, prompt=None, messages=[*messages, {"role": "user", "content": job.prompt}])


def read_jobs(path: Path, defaults: Mapping[str, Any], *, raw: bool, system: str | None) -> list[Job]:
    """Jobs of a JSONL file (or of a .txt file, one prompt per line). Without an "id", a line's number from 0 is it.

    Raises:
        InvalidRequestError: a line cannot be used; the message says which and why.
    """
    jobs: list[Job] = []
    seen: set[JobId] = set()
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                entry = {"prompt": line.rstrip("\r\n")} if path.suffix == ".txt" else json.loads(line)
                job = _job(entry, len(jobs), defaults)
                if job.id in seen:
                    raise InvalidRequestError(f"id {job.id!r} was used before", "id")
                if job.prompt is not None and not raw:
                    job = as_chat(job, system)
            except (ValueError, StilleError) as error:
                raise InvalidRequestError(f"{path}, line {number + 1}: {error}") from error
            seen.add(job.id)
            jobs.append(job)
    if not jobs:
        raise InvalidRequestError(f"{path} has no prompts")
    return jobs


def _job(entry: Any, number: int, defaults: Mapping[str, Any]) -> Job:
    if not isinstance(entry, dict):
        raise InvalidRequestError("expected a JSON object with a prompt or messages")
    prompt, messages = entry.get("prompt"), entry.get("messages")
    if (prompt is None) == (messages is None):
        raise InvalidRequestError("expected either 'prompt' or 'messages'")
    if prompt is not None and not (isinstance(prompt, str) and prompt):
        raise InvalidRequestError("'prompt' must be a non-empty string", "prompt")
    if messages is not None and not _are_messages(messages):
        raise InvalidRequestError("'messages' must be a list of {'role': ..., 'content': text}", "messages")
    identity = entry.get("id", number)
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise InvalidRequestError("'id' must be a string or an integer", "id")
    overrides = {key: value for key, value in entry.items() if key not in _OWN_KEYS}
    return Job(identity, prompt, messages, sampling({**defaults, **overrides}))


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(
            isinstance(message, dict)
            and set(message) == {"role", "content"}
            and message["role"] in ("system", "user", "assistant")
            and isinstance(message["content"], str)
            for message in value
        )
    )


def finished_ids(path: Path) -> set[JobId]:
    """Ids that an output file already answers.

    Lines of failed prompts, and a last line that was cut off, are taken out of the file: those run again.

    Raises:
        InvalidRequestError: the file exists and is not an output of this command.
    """
    if not path.exists():
        return set()
    lines = path.read_bytes().splitlines(keepends=True)
    keep: list[bytes] = []
    done: set[JobId] = set()
    for number, line in enumerate(lines):
        if not line.endswith(b"\n"):
            continue  # the run was cut while it wrote this line
        try:
            entry = json.loads(line)
            identity, failed = entry["id"], "error" in entry
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequestError(
                f"{path}, line {number + 1}, is not an answer of this command; choose another --output"
            ) from error
        if not failed:
            keep.append(line)
            done.add(identity)
    if len(keep) < len(lines):
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(b"".join(keep))
        os.replace(partial, path)
    return done


def stream_one(session: Session, job: Job) -> None:
    """Print the answer to one prompt as it is made."""
    try:
        for delta in session.stream(_prompt(session, job), job.params):
            sys.stdout.write(delta.text)
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")


def run(session: Session, jobs: Sequence[Job], sink: TextIO, *, already: int, quiet: bool) -> int:
    """Run all jobs, write one JSON line per job as it finishes; returns how many failed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from stille.cli.download import stderr_console

    columns = (
        TextColumn("generating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr_console(quiet), transient=False) as progress:
        bar = progress.add_task("", total=already + len(jobs), completed=already, rate="")
        tokens = 0

        def report(answer: Mapping[str, Any]) -> None:
            nonlocal tokens
            sink.write(json.dumps(answer, ensure_ascii=False) + "\n")
            sink.flush()
            tokens += answer.get("usage", {}).get("completion_tokens", 0)
            elapsed = progress.tasks[0].elapsed or 1e-9
            progress.update(bar, advance=1, rate=f"{tokens / elapsed:.0f} tok/s")

        failed = session.run(_run_all(session, jobs, report))
    if sink is not sys.stdout:
        os.fsync(sink.fileno())
    return failed


async def _run_all(session: Session, jobs: Sequence[Job], report: Callable[[Mapping[str, Any]], None]) -> int:
    # Enough to keep every slot busy, and well below the engine's queue limit.
    gate = asyncio.Semaphore(2 * session.engine.stats().max_num_seqs)
    failed = 0

    async def one(job: Job) -> None:
        nonlocal failed
        async with gate:
            try:
                answer = await _answer(session, job)
            except StilleError as error:
                failed += 1
                answer = {"id": job.id, "error": str(error)}
        report(answer)

    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(one(job))
    return failed


async def _answer(session: Session, job: Job) -> dict[str, Any]:
    text, finish_reason, usage = "", None, None
    prompt = await asyncio.to_thread(_prompt, session, job)
    async for delta in session.engine.generate(prompt, job.params):
        text += delta.text
        finish_reason = delta.finish_reason or finish_reason
        usage = delta.usage or usage
    assert usage is not None, "the engine ends every request with its usage"
    return {
        "id": job.id,
        "text": text,
        "finish_reason": finish_reason,
        "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens},
    }


def _prompt(session: Session, job: Job) -> list[int]:
    if job.messages is not None:
        return session.engine.render_chat(job.messages)
    return session.engine.prompts.encode(job.prompt or "")
