"""Facts about this machine and installation, and what they mean for speed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from stille._version import __version__
from stille.cli.options import DEFAULT_MODEL

CPU_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
SERVE_PACKAGES = (
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "gguf",
    "numba",
    "jinja2",
    "fastapi",
    "uvicorn",
    "prometheus-client",
    "pydantic",
    "typer",
    "rich",
    "psutil",
)
OPTIONAL_PACKAGES = ("triton", "uvloop", "httptools")


def report() -> dict[str, Any]:
    """Hardware, software, caches and findings, as plain data."""
    hardware = _hardware()
    software = _software()
    caches = _caches()
    return {
        "hardware": hardware,
        "software": software,
        "caches": caches,
        "findings": findings(hardware, software, caches),
    }


def usable_cores() -> int:
    """Logical cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _hardware() -> dict[str, Any]:
    import psutil

    name, features = _cpu()
    memory = psutil.virtual_memory()
    return {
        "cpu": name,
        "cores (physical / logical / usable)": (
            f"{psutil.cpu_count(logical=False) or '?'} / {psutil.cpu_count() or '?'} / {usable_cores()}"
        ),
        "cpu limit of the container": _cpu_quota() or "none",
        "cpu features": features,
        "memory": f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB available",
        "load (1 min)": f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "unknown",
        "gpu": _gpus(),
    }


def _cpu() -> tuple[str, list[str]]:
    name, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags.update(value.split())
    except OSError:  # not Linux: torch knows at least the vector width
        flags.add(_torch_capability().lower())
    return name, [feature for feature in CPU_FEATURES if feature in flags]


def _torch_capability() -> str:
    try:
        import torch

        return torch.backends.cpu.get_cpu_capability()
    except ImportError:
        return "unknown"


def _cpu_quota() -> str | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else f"{int(quota) / int(period):.1f} cores"


def _gpus() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        found.append(f"{card.name}, {card.total_memory / 2**30:.0f} GiB, compute {card.major}.{card.minor}")
    return found


def _software() -> dict[str, Any]:
    versions: dict[str, Any] = {
        "stille": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "torch": _version("torch"),
    }
    for package in (*SERVE_PACKAGES, *OPTIONAL_PACKAGES):
        versions[package] = _version(package)
    return versions


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _caches() -> dict[str, Any]:
    try:
        from stille.model import store
    except ImportError as error:
        return {"STILLE_HOME": f"unknown ({error})", DEFAULT_MODEL: "unknown"}
    home = store.stille_home()
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    return {
        "STILLE_HOME": f"{home} ({_size(home) / 2**20:.0f} MiB)",
        "free space there": f"{shutil.disk_usage(existing).free / 2**30:.1f} GiB",
        DEFAULT_MODEL: _default_model() or "not downloaded",
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def _default_model() -> str | None:
    from stille.errors import StilleError
    from stille.model import store

    if not (store.stille_home() / "models" / DEFAULT_MODEL).is_dir():
        return None  # without asking the store, which would make the folder
    try:
        return str(store.resolve(DEFAULT_MODEL, offline=True))
    except StilleError:
        return None


def findings(hardware: dict[str, Any], software: dict[str, Any], caches: dict[str, Any]) -> list[dict[str, str]]:
    found: list[dict[str, str]] = []

    def add(level: str, text: str, fix: str = "") -> None:
        found.append({"level": level, "text": text, "fix": fix})

    missing = [package for package in SERVE_PACKAGES if software[package] is None]
    if missing:
        add("missing", f"packages that serving needs: {', '.join(missing)}", "pip install 'stille[serve]'")
    if caches[DEFAULT_MODEL] == "not downloaded":
        add("note", f"{DEFAULT_MODEL} is not in the cache yet; its first use fetches 98 MB", "stille pull")
    _cpu_findings(set(hardware["cpu features"]), software, add)
    _gpu_findings(hardware["gpu"], software, add)
    if usable_cores() == 1:
        add("slow", "one usable core: the server's own work competes with the model")
    if software["uvloop"] is None and os.name == "posix":
        add(
            "slow",
            "asyncio's own event loop and HTTP parser; uvloop and httptools take less CPU per streamed token",
            "pip install uvloop httptools",
        )
    return found


def _cpu_findings(features: set[str], software: dict[str, Any], add: Any) -> None:
    arm = "asimd" in features
    if "avx512f" in features and "avx512_vnni" in features:
        add("fast", "AVX-512 with VNNI: int4 decode and int8 prefill run on the widest integer units")
    elif "avx_vnni" in features or ("avx2" in features and "fma" in features):
        add("slow", "AVX2 without AVX-512 VNNI: int4 decode works, int8 prefill is slower than on newer CPUs")
    elif arm:
        add("slow", "an ARM CPU: it works, but its kernels have not been tuned")
    else:
        add("slow", "no AVX2: everything works, slowly")
    if {"amx_tile", "amx_bf16"} <= features:
        add("fast", "AMX: bf16 matrix products of long prompts run on tiles")
    if software["numba"] is None:
        add("missing", "numba compiles the CPU decode kernels", "pip install numba")


def _gpu_findings(gpus: list[str], software: dict[str, Any], add: Any) -> None:
    if gpus:
        add("fast", f"CUDA: {'; '.join(gpus)}")
        if software["triton"] is None:
            add("missing", "triton compiles the GPU kernels", "pip install triton")
        else:
            add("fast", "Triton: full attention by default, sparse attention for long contexts with --attention hsa")
    elif shutil.which("nvidia-smi"):
        add(
            "missing",
            "an NVIDIA driver is installed, but this torch sees no CUDA device",
            "pip install --force-reinstall --no-deps torch",
        )
