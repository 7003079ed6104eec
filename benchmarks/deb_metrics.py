"""What counting the gates' work for /metrics costs a server: decoding with it against without, in one process.

    python benchmarks/deb_metrics.py                                   # stille-135m-deb, on a CPU or a GPU
    python benchmarks/deb_metrics.py --json benchmarks/results/deb.json

Rounds alternate: the same prompts, greedily, with every 16th step counted, as the server does, and with none.
Answers have to be equal. After each round of the first kind what was counted is read, as /metrics does when asked.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

from stille import LLM, SamplingParams, ledger
from stille.engine.routing_stats import RoutingMonitor

PROMPT = "A short history of the lighthouse keepers of the northern coast, in the words of their children:"


def main() -> int:
    options = parse()
    llm = LLM(model=options.model, max_num_seqs=options.batch, max_model_len=1024, prefix_caching=False)
    prompts = [f"{number}. {PROMPT}" for number in range(options.batch)]
    params = SamplingParams(max_tokens=options.tokens, temperature=0, ignore_eos=True)

    def run(counted: bool) -> tuple[float, list[list[int]]]:
        with mock.patch.object(RoutingMonitor, "due", RoutingMonitor.due if counted else lambda self: False):
            begin = time.perf_counter()
            outputs = llm.generate(prompts, params, progress=False)
            if counted:
                llm.stats()
            seconds = time.perf_counter() - begin
        return options.batch * options.tokens / seconds, [list(output.outputs[0].token_ids) for output in outputs]

    wanted = run(True)[1]
    if run(False)[1] != wanted:
        raise SystemExit("WRONG: answers differ with and without counting; nothing is recorded")
    if not any(layer.tokens for layer in llm.stats().routing):
        raise SystemExit("WRONG: nothing was counted; nothing is recorded")
    speeds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(options.rounds):
        for counted in (True, False) if number % 2 else (False, True):
            speeds[counted].append(run(counted)[0])
    # pairs, since the machine drifts
    costs = [100 * (without / with_ - 1) for with_, without in zip(speeds[True], speeds[False], strict=True)]
    with_, without = (statistics.median(speeds[counted]) for counted in (True, False))
    record = ledger.measure(
        "deb.metrics.overhead", statistics.median(costs), "%", goal="value <= 1", machine=ledger.describe_machine(),
        command="python benchmarks/deb_metrics.py",
        notes=f"Time that counting gates for /metrics adds to decoding, {options.batch} sequences of {options.tokens} "
        f"tokens, {options.model}: median of {options.rounds} pairs of rounds, quartiles "
        f"{statistics.quantiles(costs, n=4)[0]:+.2f} and {statistics.quantiles(costs, n=4)[2]:+.2f} %. "
        f"{with_:.1f} tok/s with, {without:.1f} without.",
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
    parser.add_argument("--rounds", type=int, default=40, help="pairs of rounds")
    parser.add_argument("--json", type=Path, help="merge the record into this ledger file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
