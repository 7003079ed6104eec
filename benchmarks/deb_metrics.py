"""What counting the gates' work for /metrics costs a server: steps of decoding that are counted against others.

    python benchmarks/deb_metrics.py                                   # stille-135m-deb, on a CPU or a GPU
    python benchmarks/deb_metrics.py --json benchmarks/results/deb.json

The server counts one step in `EVERY`. Here every second one is counted, so that both kinds meet the same machine, and
the difference of their medians is divided by `EVERY`. Answers have to be the same as without counting.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

from stille import LLM, SamplingParams, ledger
from stille.engine.routing_stats import EVERY, RoutingMonitor

PROMPT = "A short history of the lighthouse keepers of the northern coast, in the words of their children:"


class Steps:
    """In the place of `RoutingMonitor.due`, asked once as each step begins: when, and whether it is counted."""

    def __init__(self, counting: bool):
        self.counting = counting
        self.begun: list[float] = []

    def __call__(self) -> bool:
        self.begun.append(time.perf_counter())
        return self.counting and len(self.begun) % 2 == 0

    def seconds(self) -> tuple[list[float], list[float]]:
        """Of the counted steps, and of the others; the first (the prompt's) and the last are left out."""
        gaps = [after - before for before, after in zip(self.begun[1:-1], self.begun[2:], strict=True)]
        return gaps[::2], gaps[1::2]


def main() -> int:
    options = parse()
    llm = LLM(
        model=options.model, max_num_seqs=options.batch, max_model_len=1024, prefix_caching=False, max_draft_tokens=0
    )
    prompts = [f"{number}. {PROMPT}" for number in range(options.batch)]
    params = SamplingParams(max_tokens=options.tokens, temperature=0, ignore_eos=True)

    def run(counting: bool) -> tuple[Steps, list[list[int]]]:
        steps = Steps(counting)
        with mock.patch.object(RoutingMonitor, "due", steps):
            outputs = llm.generate(prompts, params, progress=False)
        return steps, [list(output.outputs[0].token_ids) for output in outputs]

    wanted = run(False)[1]
    counted: list[float] = []
    others: list[float] = []
    for _ in range(options.rounds):
        steps, answers = run(True)
        if answers != wanted:
            raise SystemExit("WRONG: answers differ with and without counting; nothing is recorded")
        for total, more in zip((counted, others), steps.seconds(), strict=True):
            total += more
    if not all(layer.tokens for layer in llm.stats().routing):
        raise SystemExit("WRONG: nothing was counted; nothing is recorded")
    slow, fast = statistics.median(counted), statistics.median(others)
    record = ledger.measure(
        "deb.metrics.overhead", 100 * (slow - fast) / fast / EVERY, "%", goal="value <= 1",
        machine=ledger.describe_machine(), command="python benchmarks/deb_metrics.py",
        notes=f"Time that counting gates for /metrics adds to decoding, {options.batch} sequence"
        f"{'s' if options.batch > 1 else ''} at once, {options.model}. A counted step {1e3 * slow:.3f} ms, another "
        f"{1e3 * fast:.3f} ms, medians of {len(counted):,} and {len(others):,} in turn; 1 in {EVERY} is counted.",
    )  # fmt: skip
    print(ledger.render_table([record]))
    if options.json:
        ledger.write(options.json, [record])
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="stille-135m-deb", help="with experts")
    parser.add_argument("--batch", type=int, default=1, help="sequences at once")
    parser.add_argument("--tokens", type=int, default=128, help="of each")
    parser.add_argument("--rounds", type=int, default=40, help="times the prompts are answered")
    parser.add_argument("--json", type=Path, help="merge the record into this ledger file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
