"""Run the benchmarks that this machine can run, one after the other, and print their tables. `make bench` calls it.

python benchmarks/run.py                 # all
python benchmarks/run.py cpu_engine      # some, by the name of their file
python benchmarks/run.py --record        # keep the figures in benchmarks/results and rewrite the tables in the docs
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from stille import ledger

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
# name of the file: (first part of its record ids, whether it needs a CUDA device)
BENCHMARKS = {
    "cpu_engine": ("cpu", False),
    "server_memory": ("cpu", False),
    "serve_soak": ("serve", False),
    "setup_time": ("setup", False),
    "gpu_engine": ("gpu", True),
    "hsa_cpu": ("hsa", False),
    "hsa_prefill": ("hsa", True),
    "hsa_train": ("hsa", True),
    "hsa_decode": ("hsa", True),
    "hsa_recall": ("hsa", True),
    "hsa_cases": ("hsa", True),
    "deb_layer": ("deb", True),
    "video_sources": ("video", False),
    "video_model": ("video", False),
}


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--record", action="store_true", help="keep the figures and rewrite the tables in the docs")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    failed, tables = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.names or BENCHMARKS:
            prefix, needs_cuda = BENCHMARKS[name]
            if needs_cuda and not has_cuda():
                print(f"{name}: left out, this machine has no CUDA device", file=sys.stderr)
                continue
            print(f"{name}: running", file=sys.stderr, flush=True)
            found = Path(scratch) / f"{name}.json"
            command = [sys.executable, FOLDER / f"{name}.py", "--json", found]
            if subprocess.run(command, cwd=ROOT).returncode != 0 or not found.exists():
                failed.append(name)
                continue
            records = ledger.read(found)
            tables.append(ledger.render_table(records))
            if options.record:
                ledger.write(FOLDER / "results" / f"{prefix}.json", records)
    print("\n" + "\n".join(tables))
    if options.record:
        subprocess.run([sys.executable, "-m", "stille.ledger", "tables"], cwd=ROOT, check=True)
    if failed:
        print(f"these failed, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
