"""Our engine on a CPU against llama.cpp and transformers: the same model, threads, prompts and machine, in one run.

    python benchmarks/cpu_engine.py                            # about fifteen minutes, plus ten once to build llama.cpp
    python benchmarks/cpu_engine.py --json benchmarks/results/cpu.json

Every side is a process of its own, started anew each round, pinned to the same cores. Rounds interleave the sides; a
sample during which anything else used more than 3 % of the machine is dropped and taken again. llama.cpp gets the
4-bit form, batch size and attention that suit it best for each phase, tried first. Before anything is timed, all sides
read the same text: if our perplexity is not that of a sound 4-bit model, nothing is recorded.
"""

import argparse
import logging
import math
import statistics
import sys
from pathlib import Path
from pydoc_data.topics import topics

from cpu_sides.llama_env import SHIPPED, make_environment, make_forms
from cpu_sides.process import Samples, Side, TooBusyError, say
from stille import ledger
from stille.model.load import load_tokenizer
from stille.model.store import resolve, stille_home

CONTEXT = 2304
PHASES = {
    # name: (request, prompt tokens, new tokens)
    "decode.short": ("decode", 24, 128),
    "decode.2k": ("decode", 2000, 64),
    "prefill.2k": ("prefill", 2048, 0),
}
WINDOWS, WINDOW = 4, 384  # of the quality check
CONTINUATION = 32


def main() -> int:
    options = parse()
    gguf = find_gguf(options.model)
    cache = stille_home() / "benchmarks"
    llama_python = make_environment(options.llama_env or cache / "llama-cpp")
    forms = make_forms(llama_python, gguf, cache / "models")
    ids = read_text(gguf, WINDOWS * WINDOW + options.rounds * 2100)

    def llama(form: str, batch: int, flash: bool) -> Side:
        settings = {"path": str(forms[form]), "threads": options.threads, "context": CONTEXT}
        name = f"llama.cpp {form}, ubatch {batch}, flash attention {'on' if flash else 'off'}"
        return Side(name, llama_python, "llama_cpp_side.py", {**settings, "batch": batch, "flash": flash})

    here = Path(sys.executable)
    base = {"path": str(gguf), "threads": options.threads}
    ours = Side("Stille", here, "stille_side.py", {**base, "dtype": options.dtype, "context": CONTEXT})
    torch_fp32 = Side("transformers fp32", here, "transformers_side.py", base)

    quality = check_quality(ours, torch_fp32, llama("Q4_0", 512, True), ids[: WINDOWS * WINDOW])
    ids = ids[WINDOWS * WINDOW :]
    try:
        best, shipped = choose_llama(
            {f: [llama(f, b, a) for b in (512, 2048) for a in (True, False)] for f in forms}, ids, options
        )
        samples, peaks, versions = run_rounds(ours, torch_fp32, best, ids, options)
    except TooBusyError as error:
        raise SystemExit(f"{error}; nothing recorded. Try again on a quiet machine, or with --tries") from error
    records = make_records(samples, peaks, versions, best, shipped, quality, options)
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    parser.add_argument("--model", default="stille-135m", help="name or .gguf file")
    parser.add_argument("--dtype", default="auto", help="of our engine")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tries", type=int, default=30, help="for each sample, while other programs disturb")
    parser.add_argument("--llama-env", type=Path, help="virtual environment of llama-cpp-python; made if absent")
    return parser.parse_args()


def find_gguf(model: str) -> Path:
    path = resolve(model)
    if path.is_dir():
        (path,) = path.glob("*.gguf")
    return path


def read_text(gguf: Path, length: int) -> list[int]:
    """English prose and code that every Python brings: its own language reference."""
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it warns that the text is longer than the context
    text = "\n\n".join(topics[name] for name in sorted(topics, key=lambda name: (-len(topics[name]), name))[:24])
    ids = load_tokenizer(gguf)(text)["input_ids"]
    if len(ids) < length:
        raise SystemExit(f"the text has {len(ids)} tokens, {length} are needed: fewer --rounds")
    return ids[:length]


def check_quality(ours: Side, torch_fp32: Side, llama: Side, ids: list[int]) -> str:
    """Hold our numbers to fp32 and to llama.cpp's 4-bit form before any of them is timed.

    Returns:
        what was found, for the records' notes.

    Raises:
        SystemExit: our perplexity or agreement is worse than the 4-bit baseline's (3 %, two points).
    """
    windows = [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(WINDOWS)]
    perplexity, likeliest, written, first = {}, {}, {}, {}
    for side in (torch_fp32, llama, ours):
        with side.start() as running:
            scores = [running.ask("score", ids=window) for window in windows]
            prompts = [window[: WINDOW // 2] for window in windows]
            written[side.name] = [running.ask("decode", ids=p, new=CONTINUATION)["ids"] for p in prompts]
            first[side.name] = [running.ask("prefill", ids=window)["ids"][0] for window in windows]
        logprobs = [value for score in scores for value in score["logprobs"]]
        perplexity[side.name] = math.exp(-statistics.fmean(logprobs))
        likeliest[side.name] = [token for score in scores for token in score["likeliest"]]
        say(f"{side.name}: perplexity {perplexity[side.name]:.3f}")
    exact = torch_fp32.name

    def agreement(a: list[int], b: list[int]) -> float:
        return statistics.fmean(x == y for x, y in zip(a, b, strict=True))

    def common(a: list[list[int]], b: list[list[int]]) -> float:
        """Tokens before two greedy continuations part, on average over the prompts."""
        parts = [
            next((i for i, (x, y) in enumerate(zip(p, q, strict=True)) if x != y), len(p))
            for p, q in zip(a, b, strict=True)
        ]
        return statistics.fmean(parts)

    same = {name: agreement(likeliest[name], likeliest[exact]) for name in (ours.name, llama.name)}
    together = {name: common(written[name], written[exact]) for name in (ours.name, llama.name)}
    last = [likeliest[ours.name][(i + 1) * WINDOW - 1] for i in range(WINDOWS)]
    prefill_agrees = agreement(first[ours.name], last)
    report = (
        f"Quality on {WINDOWS} x {WINDOW} tokens of Python's language reference: perplexity "
        f"{perplexity[ours.name]:.2f} ours, {perplexity[llama.name]:.2f} llama.cpp Q4_0, {perplexity[exact]:.2f} fp32; "
        f"likeliest token as in fp32 at {same[ours.name]:.1%} and {same[llama.name]:.1%} of positions; greedy text "
        f"equal to fp32's for {together[ours.name]:.1f} and {together[llama.name]:.1f} of {CONTINUATION} tokens"
    )
    say(report)
    if perplexity[ours.name] > 1.03 * max(perplexity[llama.name], perplexity[exact]):
        raise SystemExit("our perplexity is more than 3 % above the 4-bit baseline's: nothing is timed")
    if same[ours.name] < same[llama.name] - 0.02:
        raise SystemExit(
            "our likeliest token differs from fp32's more often than the 4-bit baseline's: nothing is timed"
        )
    if prefill_agrees < 0.75:
        raise SystemExit("prefill and decode kernels disagree about the next token: nothing is timed")
    return report


def choose_llama(sides: dict[str, list[Side]], ids: list[int], options: argparse.Namespace):
    """Try llama.cpp's forms and settings: the better of two samples of each.

    Returns:
        the fastest side for each phase; the best rate of the model as shipped for each phase, for the notes.
    """
    rates: dict[tuple[str, str, Side], float] = {}
    for form, side in [(form, side) for form, candidates in sides.items() for side in candidates]:
        with side.start() as running:
            for phase, (do, prompt, new) in PHASES.items():
                fields = {"new": new // 2} if new else {}
                answers = [running.timed(options.tries, do, ids=ids[:prompt], **fields) for _ in range(2)]
                rates[phase, form, side] = (new // 2 - 1 if new else prompt) / min(a["seconds"] for a in answers)
        say(f"{side.name}: {', '.join(f'{phase} {rates[phase, form, side]:.1f}' for phase in PHASES)} tok/s")
    best, shipped = {}, {}
    for phase in PHASES:
        best[phase] = max((key for key in rates if key[0] == phase), key=lambda key: rates[key])[2]
        shipped[phase] = max(rate for (p, form, _), rate in rates.items() if (p, form) == (phase, SHIPPED))
    return best, shipped


def run_rounds(ours: Side, torch_fp32: Side, best: dict[str, Side], ids: list[int], options: argparse.Namespace):
    """Interleaved rounds; each side starts anew and runs the phases that it takes part in.

    Returns:
        samples by (phase, side's role), peak memory by role, version by role.
    """
    plan = [("ours", ours, list(PHASES)), ("torch", torch_fp32, list(PHASES))]
    for side in dict.fromkeys(best.values()):
        plan.append(("llama", side, [phase for phase in PHASES if best[phase] is side]))
    samples = {(phase, role): Samples() for phase in PHASES for role in ("ours", "torch", "llama")}
    peaks: dict[str, float] = {}
    versions: dict[str, str] = {}
    for round in range(options.rounds):
        for role, side, phases in plan[round % len(plan) :] + plan[: round % len(plan)]:
            with side.start() as running:
                for phase in phases:
                    do, prompt, new = PHASES[phase]
                    fields = {"new": new} if new else {}
                    answer = running.timed(options.tries, do, ids=ids[round * 2100 :][:prompt], **fields)
                    samples[phase, role].add(new - 1 if new else prompt, answer)
                peaks[role] = max(peaks.get(role, 0.0), running.ask("memory")["mib"])
                versions[role] = running.ready["version"]
        latest = ", ".join(f"{p} {r} {s.rates[-1]:.1f}" for (p, r), s in samples.items())
        say(f"round {round + 1} of {options.rounds}: {latest}")
    for (phase, role), sample in samples.items():
        say(f"{phase:13} {role:6} {sample}")
    return samples, peaks, versions


def make_records(
    samples, peaks, versions, best, shipped, quality: str, options: argparse.Namespace
) -> list[ledger.Record]:
    method = (
        f"{options.threads} threads pinned, batch 1, greedy, median of {options.rounds} interleaved rounds, each "
        "side a fresh process; samples dropped while other programs used over 3 % of the machine"
    )
    what = {
        "decode.short": "Decoding one sequence, 24 tokens of prompt, 128 new",
        "decode.2k": "Decoding one sequence after 2,000 tokens, 64 new",
        "prefill.2k": "Reading a prompt of 2,048 tokens",
    }
    goals = {"decode.short": "ratio >= 1.0", "decode.2k": "ratio >= 1.0", "prefill.2k": "ratio >= 1.8"}
    command = "python benchmarks/cpu_engine.py"
    records = []
    for phase in PHASES:
        ours, torch, llama = (samples[phase, role] for role in ("ours", "torch", "llama"))
        notes = (
            f"{what[phase]}. {method}. Ranges in tok/s: ours {ours}; llama.cpp {llama}; transformers fp32 {torch}. The "
            f"model as shipped (Q4_1, whose weights ours equal) ran at {shipped[phase]:.1f} in llama.cpp."
        )
        common = {"unit": "tok/s", "command": command, "machine": ledger.describe_machine()}
        records.append(
            ledger.measure(
                f"cpu.{phase}",
                ours.median,
                baseline=f"{best[phase].name} (llama-cpp-python {versions['llama']})",
                baseline_value=llama.median,
                goal=goals[phase],
                notes=f"{notes} {quality}.",
                **common,
            )
        )
        records.append(
            ledger.measure(
                f"cpu.{phase}.torch",
                ours.median,
                baseline=f"fp32 by {versions['torch']}",
                baseline_value=torch.median,
                goal="ratio >= 1.0",
                notes=notes,
                **common,
            )
        )
    records.append(
        ledger.measure(
            "cpu.memory.engine",
            peaks["ours"],
            "MiB",
            better="lower",
            baseline=f"llama.cpp (llama-cpp-python {versions['llama']})",
            baseline_value=peaks["llama"],
            command=command,
            notes=f"Peak resident memory of the engine's process over these phases. transformers fp32: "
            f"{peaks['torch']:.0f} MiB. Loading included; the Python and torch libraries alone take some 300 MiB.",
        )
    )
    return records


if __name__ == "__main__":
    sys.exit(main())
