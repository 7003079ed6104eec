"""Files through the official client and, for what that would not send, by hand."""

import contextlib
import socket
import sqlite3
import time

import httpx
import openai
import pytest

from stille.server import ServerSettings
from stille.server.batches.database import FILE_NAME

MIB = 2**20
DAY = 24 * 3600


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def kept(start_server, tiny_checkpoint, data):
    settings = ServerSettings(
        served_model_names=("tiny",), data_dir=data, max_body_bytes=1024, max_file_bytes=2 * MIB, max_files=4
    )
    with start_server(tiny_checkpoint, settings, max_num_seqs=2, kv_cache_tokens=4096) as server:
        yield server


def connected(served):
    return openai.OpenAI(base_url=f"{served.base}/v1", api_key="unused", max_retries=0, timeout=60)


@pytest.fixture
def api(kept, data):
    with connected(kept) as api:
        yield api
        for file in api.files.list():
            api.files.delete(file.id)
    assert not list((data / "files").iterdir())


@pytest.fixture
def client(kept, api):
    with httpx.Client(base_url=f"{kept.base}/v1", timeout=60) as client:
        yield client


def upload(api, content=b"x", name="requests.jsonl", **more):
    return api.files.create(file=(name, content), purpose="batch", **more)


def test_there_and_back(api, data):
    content = bytes(range(256)) * 4096 + b"\r\n--boundary\r\n"  # larger than other bodies may be
    file = upload(api, content, "naïve 東京.jsonl")
    assert (file.object, file.purpose, file.filename) == ("file", "batch", "naïve 東京.jsonl")
    assert file.bytes == len(content)
    assert file.expires_at - file.created_at == 30 * DAY
    assert api.files.retrieve(file.id) == file
    assert api.files.content(file.id).read() == content
    assert [path.name for path in (data / "files").iterdir()] == [file.id]
    deleted = api.files.delete(file.id)
    assert (deleted.id, deleted.deleted) == (file.id, True)
    for ask in (api.files.retrieve, api.files.content, api.files.delete):
        with pytest.raises(openai.NotFoundError, match="no file"):
            ask(file.id)


def test_an_empty_file_is_a_file(api):
    file = upload(api, b"")
    assert file.bytes == 0
    assert api.files.content(file.id).read() == b""


def test_the_list_is_paged_both_ways(api):
    made = [upload(api, name=str(i)).id for i in range(4)]
    page = api.files.list(limit=3)
    assert ([file.id for file in page.data], page.has_more) == (made[:0:-1], True)
    assert [file.id for file in api.files.list(limit=3)] == made[::-1]  # the client turns the pages
    assert [file.id for file in api.files.list(limit=1, order="asc")] == made
    assert [file.id for file in api.files.list(purpose="batch")] == made[::-1]
    assert api.files.list(purpose="batch_output").data == []
    with pytest.raises(openai.NotFoundError):
        api.files.list(after="file-of-nobody")
    for wrong in ({"limit": 0}, {"order": "up"}, {"purpose": "vision"}):
        with pytest.raises(openai.BadRequestError):
            api.files.list(**wrong)


def test_expired_files_are_gone(api, data):
    file = upload(api, expires_after={"anchor": "created_at", "seconds": 3600})
    other = upload(api)
    assert file.expires_at - file.created_at == 3600
    with sqlite3.connect(data / FILE_NAME) as db:  # an hour later
        db.execute("UPDATE files SET expires_at = created_at WHERE id = ?", (file.id,))
    with pytest.raises(openai.NotFoundError):
        api.files.retrieve(file.id)
    assert [each.id for each in api.files.list()] == [other.id]
    third = upload(api)
    assert {path.name for path in (data / "files").iterdir()} == {other.id, third.id}


def test_there_are_bounds(api, data):
    upload(api, b"x" * 2 * MIB)
    with pytest.raises(openai.APIStatusError) as error:
        upload(api, b"x" * 3 * MIB)
    assert (error.value.status_code, error.value.code) == (413, "body_too_large")
    for _ in range(3):
        upload(api)
    with pytest.raises(openai.BadRequestError, match="delete some"):
        upload(api)
    assert len(list((data / "files").iterdir())) == 4


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "purpose", "missing_required_parameter"),
        ({"purpose": "fine-tune"}, "purpose", "unsupported_parameter"),
        ({"purpose": "batch", "file": "text"}, "file", "invalid_type"),
        ({"purpose": ["batch", "batch"]}, "purpose", "invalid_form"),
        ({"purpose": "batch", "name": "x"}, "name", "unknown_parameter"),
        ({"purpose": "b" * 2000}, "purpose", "invalid_value"),
        ({"purpose": "batch", "expires_after[anchor]": "now"}, "expires_after[anchor]", "invalid_value"),
        ({"purpose": "batch", "expires_after[seconds]": "3599"}, "expires_after[seconds]", "invalid_value"),
        ({"purpose": "batch", "expires_after[seconds]": "9" * 30}, "expires_after[seconds]", "invalid_value"),
        ({"purpose": "batch", "expires_after[seconds]": "-4000"}, "expires_after[seconds]", "invalid_value"),
    ],
)
def test_wrong_fields_are_named(client, data, fields, param, code):
    answer = client.post("/files", data=fields, files={"file": ("f", b"x")})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert not list((data / "files").iterdir())


FORM = "multipart/form-data; boundary=cut"
PURPOSE = b'--cut\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = b'--cut\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", PURPOSE + FILE + b"--cut--\r\n"),
        (FORM, b""),
        (FORM, b"nonsense"),
        (FORM, PURPOSE + FILE),
        (FORM, PURPOSE + b"--cut--\r\n"),
        (FORM, PURPOSE + FILE + FILE + b"--cut--\r\n"),
        (FORM, PURPOSE + FILE.replace(b"name", b"x" * 4000 + b"; name") + b"--cut--\r\n"),
        (FORM, PURPOSE + b"--cut\r\n\r\nx\r\n--cut--\r\n"),
    ],
)
def test_what_is_no_form_is_refused(client, data, kind, body):
    answer = client.post("/files", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["code"] in ("invalid_form", "missing_required_parameter", "unknown_parameter")
    assert not list((data / "files").iterdir())
    right = client.post("/files", content=PURPOSE + FILE + b"--cut--\r\n", headers={"Content-Type": FORM})
    assert right.status_code == 200


def test_a_client_that_leaves_in_the_middle_leaves_nothing(kept, api, data):
    head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: 100000\r\n\r\n"
    with contextlib.closing(socket.create_connection(("127.0.0.1", kept.port))) as connection:
        connection.sendall(head.encode() + PURPOSE + FILE)
        _until(lambda: list((data / "files").iterdir()))  # it goes to disk as it comes
    _until(lambda: not list((data / "files").iterdir()))


def _until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_killed_process_left_is_removed_at_the_start(start_server, tiny_checkpoint, tmp_path):
    settings = ServerSettings(served_model_names=("tiny",), data_dir=tmp_path)
    config = {"max_num_seqs": 2, "kv_cache_tokens": 4096}
    with start_server(tiny_checkpoint, settings, **config) as server, connected(server) as api:
        file = upload(api, b"kept")
    for name in ("half.part", "file-without-a-row"):
        (tmp_path / "files" / name).write_bytes(b"x")
    with start_server(tiny_checkpoint, settings, **config) as server, connected(server) as api:
        assert [path.name for path in (tmp_path / "files").iterdir()] == [file.id]
        assert api.files.content(file.id).read() == b"kept"
    assert (tmp_path / "files" / file.id).stat().st_mode & 0o077 == 0
