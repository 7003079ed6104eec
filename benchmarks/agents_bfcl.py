"""BFCL's offline categories with a model of ours, each on record as it is.

    python benchmarks/agents_bfcl.py --data FOLDER --json benchmarks/results/agents.json
    python benchmarks/agents_bfcl.py --model stille-135m-tools --data FOLDER --answers answers.jsonl --batch 96

Runs `stille eval bfcl` (see there for the package that it needs); with `--answers` a run that was stopped goes on.
No baseline is run with it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from stille import ledger


def main() -> int:
    options, others = parse()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "bfcl.json"
        command = [sys.executable, "-m", "stille.cli", "eval", "bfcl", "--model", options.model, "--json", str(found)]
        if code := subprocess.run([*command, *others]).returncode:
            return code
        results = json.loads(found.read_text(encoding="utf-8"))
    name = options.name or options.model.removeprefix("stille-135m").strip("-") or "default"
    records = [
        ledger.measure(
            f"agents.bfcl.{name}.{category}",
            100 * row["accuracy"], "%", command=f"python benchmarks/agents_bfcl.py {ledger.arguments()}",
            notes=f"BFCL, category {category}: right answers of {options.model}, {row['right']} of {row['questions']} "
            f"questions (95 % interval {100 * row['low']:.1f} to {100 * row['high']:.1f} %), tool choice "
            f"{results['tool choice']}.",
        )
        for category, row in results["categories"].items()
    ]  # fmt: skip
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0], epilog="Other options go to `stille eval bfcl`."
    )
    parser.add_argument("--model", default="stille-135m")
    parser.add_argument("--name", help="of the records, instead of the model's")
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    return parser.parse_known_args()


if __name__ == "__main__":
    sys.exit(main())
