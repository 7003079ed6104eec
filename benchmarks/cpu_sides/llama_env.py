"""llama.cpp in an environment of its own, and the model in the forms that it may run it in."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = ("llama-cpp-python==0.3.36", "numpy")
SIDE = Path(__file__).with_name("llama_cpp_side.py")
SHIPPED = "as shipped"
FORMS = {
    # name: (type, whether the embedding is 4-bit too; otherwise llama.cpp chooses 8 bits for it)
    "Q4_0": ("Q4_0", False),
    "Q4_0-pure": ("Q4_0", True),
}


def make_environment(folder: Path) -> Path:
    """Its Python. Builds llama.cpp from source for this machine's processor, which takes some ten minutes once.

    Raises:
        SystemExit: no compiler, or the build failed.
    """
    python = folder / "bin" / "python"
    probe = "import llama_cpp; print(llama_cpp.__version__)"
    if python.exists() and subprocess.run([python, "-c", probe], capture_output=True).returncode == 0:
        return python
    if not (shutil.which("c++") or shutil.which("g++")):
        raise SystemExit("llama.cpp is built from source for this comparison: install a C++ compiler (apt: g++)")
    print(f"building llama.cpp in {folder} (about ten minutes)", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    env = {**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
    # From source even where a wheel is at hand: a wheel is built for the oldest processor.
    command = [python, "-m", "pip", "install", "-q", "--no-binary", "llama-cpp-python", *REQUIREMENTS]
    subprocess.run(command, check=True, env=env)
    return python


def make_forms(python: Path, source: Path, folder: Path) -> dict[str, Path]:
    """The model as shipped and requantised by llama.cpp itself; made once."""
    forms = {SHIPPED: source}
    folder.mkdir(parents=True, exist_ok=True)
    for name, (type_name, pure) in FORMS.items():
        path = folder / f"{source.stem}.{name}.gguf"
        if not path.exists() or path.stat().st_mtime < source.stat().st_mtime:
            task = {"quantize": [str(source), str(path)], "type": type_name, "pure": pure}
            subprocess.run([python, SIDE, json.dumps(task)], check=True)
        forms[name] = path
    return forms
