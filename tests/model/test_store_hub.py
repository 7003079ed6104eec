"""The Hub, as huggingface_hub's client sees it: a server on this machine that speaks its protocol."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants as hub
import pytest
import torch

from stille.errors import ModelNotFoundError
from stille.model.checkpoint import SafetensorsFolder, build_model
from stille.model.load import folder_config
from stille.model.store import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Repositories in memory: name -> file name -> bytes. `cut_after` breaks every connection after so many bytes."""

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.cut_after: int | None = None
        self.requests: list[tuple[str, str, str | None]] = []
        hub_self = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                hub_self.answer(self, body=False)

            def do_GET(self):
                hub_self.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request, *, body: bool):
        path = unquote(urlsplit(request.path).path)
        self.requests.append((request.command, path, request.headers.get("Range")))
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            repository = "/".join(parts[2:4])
            if repository not in self.repositories:
                return self.send(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
            files = self.repositories[repository]
            if parts[4:5] == ["tree"]:
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                return self.send(request, 200, json.dumps(entries).encode())
            info = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            return self.send(request, 200, json.dumps(info).encode())
        repository, name = "/".join(parts[:2]), "/".join(parts[4:])
        if repository in self.gated:
            return self.send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        data = self.repositories.get(repository, {}).get(name)
        if data is None:
            code = "EntryNotFound" if repository in self.repositories else "RepoNotFound"
            return self.send(request, 404, b"", {"X-Error-Code": code})
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = 0
        if (wanted := request.headers.get("Range")) is not None:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.send(request, 206 if start else 200, data[start:], headers, body=body)

    def send(self, request, status, data, headers=None, *, body=True):
        request.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            request.send_header(key, value)
        request.end_headers()
        if not body or request.command == "HEAD":
            return
        if self.cut_after is not None and len(data) > self.cut_after:
            request.wfile.write(data[: self.cut_after])
            request.close_connection = True
        else:
            request.wfile.write(data)


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "HF_HUB_DISABLE_XET", True)
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def files(make_checkpoint, tmp_path):
    """A sharded checkpoint as it lies on the Hub, with what should stay there."""
    folder = tmp_path / "original"
    make_checkpoint("llama").save_pretrained(folder, max_shard_size="60KB")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {
        "README.md": b"# model",
        "pytorch_model.bin": b"x" * 1000,
        "original/consolidated.safetensors": b"y",
    }


@torch.no_grad()
def test_a_repository_is_fetched_and_loads(server, files, make_checkpoint, ids):
    server.repositories["org/tiny"] = files
    seen = []
    folder = resolve("org/tiny", progress=lambda done, total: seen.append((done, total)))
    fetched = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert fetched == {name for name in files if name.endswith((".json", ".safetensors")) and "/" not in name}
    model = build_model(folder_config(folder), SafetensorsFolder(folder))
    torch.testing.assert_close(model(ids).logits, make_checkpoint("llama")(ids).logits, rtol=1e-4, atol=1e-5)
    total = sum(len(files[name]) for name in fetched)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)

    server.repositories.clear()  # from now on the copy in the cache has to do
    assert resolve("org/tiny", offline=True) == folder


def test_hf_hub_offline_is_respected(server, files, monkeypatch):
    server.repositories["org/tiny"] = files
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match="hf download org/tiny"):
        resolve("org/tiny")
    assert server.requests == []


def test_a_single_gguf_file(server):
    server.repositories["org/quantised"] = {"small/model.gguf": b"GGUF" + bytes(100), "config.json": b"{}"}
    path = resolve("org/quantised/small/model.gguf")
    assert path.read_bytes() == b"GGUF" + bytes(100)
    with pytest.raises(ModelNotFoundError, match=r"org/quantised/absent\.gguf"):
        resolve("org/quantised/absent.gguf")


def test_a_cut_download_is_reported_and_resumed(server, files):
    server.repositories["org/tiny"] = files
    server.cut_after = 20_000
    with pytest.raises(ModelNotFoundError, match="hf download org/tiny"):
        resolve("org/tiny")
    server.cut_after = None
    server.requests.clear()
    folder = resolve("org/tiny")
    shards = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    assert sorted(path.name for path in folder.glob("*.safetensors")) == sorted(shards)
    for path in folder.glob("*.safetensors"):
        assert path.read_bytes() == files[path.name]


def test_unknown_repository_and_revision(server, files):
    with pytest.raises(ModelNotFoundError, match="'org/absent'"):
        resolve("org/absent")


def test_gated_repository(server, files):
    server.repositories["org/gated"] = files
    server.gated.add("org/gated")
    with pytest.raises(ModelNotFoundError, match="gated"):
        resolve("org/gated")


def test_no_network(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelNotFoundError, match="--local-dir FOLDER"):
        resolve("org/tiny")


def test_a_repository_without_configuration(server):
    server.repositories["org/odd"] = {"README.md": b"hello", "tokenizer.json": b"{}"}
    with pytest.raises(ModelNotFoundError, match=r"lacks config\.json"):
        resolve("org/odd")
