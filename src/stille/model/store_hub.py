"""Models of the Hugging Face Hub, kept in Hugging Face's own cache (HF_HOME), so they are shared with other tools."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - of whichever HTTP client this version uses
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.auto import tqdm

from stille.errors import ModelNotFoundError

Progress = Callable[[int, int], None]
PART = r"[A-Za-z0-9][\w.-]*"
REPOSITORY = re.compile(rf"(?P<repo>{PART}/{PART})(/(?P<file>[\w./-]+\.gguf))?(@(?P<revision>[\w./-]+))?")
# What a checkpoint consists of; weights in other formats and duplicates in the vendor's own layout stay where they are.
WANTED = ["*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt", "*.safetensors"]
UNWANTED = ["*/*", "consolidated*"]


def is_repository(name: str) -> bool:
    """Whether a name has the form of a Hub repository or of a GGUF file in one."""
    return REPOSITORY.fullmatch(name) is not None


def fetch_from_hub(name: str, *, offline: bool, progress: Progress | None) -> Path:
    """The local snapshot of a repository, or a GGUF file of it; a cut download resumes.

    Raises:
        ModelNotFoundError: no such repository, no access, or no network and nothing in the cache.
    """
    match = REPOSITORY.fullmatch(name)
    assert match is not None, "callers ask is_repository first"
    repo, file, revision = match["repo"], match["file"], match["revision"]
    options: dict[str, Any] = {
        "revision": revision,
        "local_files_only": offline or constants.HF_HUB_OFFLINE,
        "endpoint": os.environ.get("HF_ENDPOINT") or None,
        "tqdm_class": _bar_class(progress),
    }
    try:
        if file is not None:
            return Path(hf_hub_download(repo, file, **options))
        folder = Path(snapshot_download(repo, allow_patterns=WANTED, ignore_patterns=UNWANTED, **options))
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{repo} is gated: accept its licence on the Hub, then log in with `hf auth login`. ({_first_line(error)})"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelNotFoundError(_offline_advice(repo, file, error)) from error
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError, HFValidationError) as error:
        raise ModelNotFoundError(f"the Hub has no {name!r}, or it is private: {_first_line(error)}") from error
    except (OfflineModeIsEnabled, HfHubHTTPError, HTTPError, OSError) as error:
        raise ModelNotFoundError(_offline_advice(repo, file, error)) from error
    if absent := _absent(folder):
        raise ModelNotFoundError(_offline_advice(repo, file, f"the cached copy lacks {', '.join(absent)}"))
    return folder


def _absent(folder: Path) -> list[str]:
    """Files that a snapshot should have and has not, such as shards that a cut left out."""
    needed = {"config.json"}
    index = folder / "model.safetensors.index.json"
    if index.exists():
        needed.update(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
    return sorted(name for name in needed if not (folder / name).exists())


def _offline_advice(repo: str, file: str | None, reason: object) -> str:
    what = f"--include '{file}'" if file else "--include '*.json' '*.jinja' '*.model' 'merges.txt' '*.safetensors'"
    return (
        f"{repo} is not complete in the local cache ({constants.HF_HUB_CACHE}) and could not be fetched: "
        f"{_first_line(reason)}. Fetch it on a connected machine with `hf download {repo} {what} --local-dir FOLDER` "
        "and give the path of FOLDER" + (" and file" if file else "") + " instead of the name."
    )


def _first_line(reason: object) -> str:
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(reason).__name__


def _bar_class(progress: Progress | None) -> type:
    """huggingface_hub draws its own bars; this one draws nothing and tells the bytes to the callback.

    Versions differ in how many bars count the same bytes (received, written); the one that is furthest is told.
    """
    furthest = [0]

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            self.counts_bytes = kwargs.get("unit") == "B"
            self.done = int(kwargs.get("initial") or 0)
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.done += int(n or 0)
            if progress is not None and self.counts_bytes and self.done > furthest[0]:
                furthest[0] = self.done
                progress(self.done, max(int(self.total or 0), self.done))
            return None

    return Bar
