"""The loan desk on generated applications: fields, decisions and reasons against the truth, and how long it takes.

    python benchmarks/loan_desk.py --out build/loans-300 --json benchmarks/results/loan.json
    python benchmarks/loan_desk.py --out build/other --endpoint http://127.0.0.1:8000/v1 --model some-model

Everything runs as in `make loan-demo`: PDFs, three services over HTTP with their faults, agents, durable workflows.
What it came to is then compared with the truth that the generator wrote. Started again with the same --out it goes on
where it was; the minutes are those of all starts together.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from examples.loan_underwriting.compliance.assess import ask, features, measures
from examples.loan_underwriting.compliance.decide import Decision, Reason, decide
from examples.loan_underwriting.compliance.papers import from_truth, load_truth
from examples.loan_underwriting.compliance.policy import Policy, check, load_policy
from examples.loan_underwriting.demo import make_model, process, write_applications
from examples.loan_underwriting.desk.case import CaseFile
from examples.loan_underwriting.documents.facts import TODAY
from examples.loan_underwriting.extraction import Extraction, GeometryExtractor
from examples.loan_underwriting.measure import compare
from examples.loan_underwriting.scoring.evaluate import APPROVED
from examples.loan_underwriting.scoring.scorecard import Features, Scorecard
from examples.loan_underwriting.services.world import World, load_world
from stille import ledger
from stille.agents.approvals import Approval

FIRST_SEED = 30_000
"""Applications that neither the extractor nor the policy was written on."""


class Compared:
    """An extractor that notes, beside giving it back, how what it read compares with the truth."""

    def __init__(self, notes: Path):
        self.notes, self.inner = notes, GeometryExtractor()

    def extract(self, path: Path) -> Extraction:
        result = self.inner.extract(path)
        documents = load_truth(path.parent)["documents"]
        truth = next(document for document in documents if document["file"] == path.name)
        note = {"document": f"{path.parent.name}/{path.name}", **compare(result, truth)}
        with open(self.notes, "a") as file:
            file.write(json.dumps(note) + "\n")
        return result


class Truth:
    """What is true of an application, and what the policy makes of it."""

    def __init__(self, folder: Path, world: World, policy: Policy, card: Scorecard):
        self.card, papers = card, from_truth(load_truth(folder))
        reports = ask(world, papers)
        self.measures = measures(papers, reports, TODAY)
        self.features: Features | None
        try:
            self.features = features(papers, reports, TODAY)
        except ValueError:
            self.features = None
        self.holds = check(policy, self.measures)
        self.decision: Decision = decide(policy, card, self.measures, self.features)

    def bears_out(self, reason: Reason) -> bool:
        """The rule is broken; or the factor cost these points, and would not have with the value that is named."""
        if reason.source == "rule":
            return not self.holds[reason.id]
        if self.features is None:
            return False
        changed = {**self.features, reason.id: reason.would_help}
        gained = self.card.score(changed).points - self.card.score(self.features).points
        return gained == reason.points_lost > 0


def judge(
    files: Mapping[str, CaseFile | None], waiting: Sequence[Approval], truths: Mapping[str, Truth]
) -> tuple[Counter[str], list[str]]:
    """How many cases came out how, and a line for each that did not come out as from the truth."""
    suggested = {approval.run: approval.arguments["suggested"] for approval in waiting if approval.tool == "grant_loan"}
    counts, lines = Counter[str](), list[str]()
    for name, file in files.items():
        oracle = truths[name].decision
        right = oracle.outcome if oracle.straight_through else "a person"
        if file is None:
            kind = "same" if right == "a person" else "parked"
            counts["other suggestion"] += kind == "same" and suggested.get(name) not in (None, oracle.outcome)
            found = "a person"
        else:
            kind, found = "same" if file.outcome == right else "wrong", file.outcome
            for reason in file.reasons if file.outcome == "decline" else ():
                counts["reasons"] += 1
                if not truths[name].bears_out(reason):
                    counts["untrue reasons"] += 1
                    lines.append(f"{name}: reason {reason.id} is not true of the application")
        counts[kind] += 1
        counts[found] += 1
        if kind != "same":
            lines.append(f"{name}: {found}, from the truth {right}")
    return counts, lines


def extraction(notes: Path) -> dict[str, Counter[str]]:
    """Fields and exact ones by "text" and "scan". A document that was read twice counts once."""
    by_document = {note["document"]: note for note in map(json.loads, notes.read_text().splitlines())}
    counts = {"text": Counter[str](), "scan": Counter[str]()}
    for note in by_document.values():
        counts["scan" if note["scanned"] else "text"].update(
            documents=1,
            fields=note["fields"],
            exact=note["fields"] - len(note["wrong"]),
            unflagged=sum(not wrong["unsure"] for wrong in note["wrong"]),
        )
    return counts


async def main() -> int:
    options = parse()
    out: Path = options.out
    write_applications(out, options.cases, options.seed, options.scanned)
    world, policy, card = load_world(out / "world.json"), load_policy(), Scorecard.load()
    clock = out / "seconds.json"  # of earlier starts
    before = json.loads(clock.read_text()) if clock.exists() else 0.0
    model = await make_model(options.model, options.endpoint, options.api_key)
    begun = time.perf_counter()
    try:
        files, waiting = await process(out, model, options.faults, extractor=Compared(out / "extraction.jsonl"))
    finally:
        seconds = before + time.perf_counter() - begun
        clock.write_text(json.dumps(seconds))
    truths = {name: Truth(out / name, world, policy, card) for name in files}
    counts, lines = judge(files, waiting, truths)
    for line in lines:
        print(line)
    records = report(options, files, counts, extraction(out / "extraction.jsonl"), card, seconds, model.name)
    print(ledger.render_table(records))
    if options.json:
        ledger.write(options.json, records)
    return 0


def report(
    options: argparse.Namespace, files: Mapping[str, CaseFile | None], counts: Counter[str],
    read: Mapping[str, Counter[str]], card: Scorecard, seconds: float, model: str,
) -> list[ledger.Record]:  # fmt: skip
    command = "python benchmarks/loan_desk.py " + ledger.arguments()
    done = [file for file in files.values() if file is not None]
    of = f"{len(files)} generated applications, {options.scanned:.0%} of the documents scanned, agents by {model}"

    def record(id: str, value: float, unit: str, notes: str, **more: Any) -> ledger.Record:
        return ledger.measure(f"loan.{id}", value, unit, notes=notes, **{"command": command.strip(), **more})

    records = [
        record(
            f"extract.{source}", 100 * count["exact"] / count["fields"], "%",
            f"Fields of {'scans' if source == 'scan' else 'text PDFs'} whose value is exactly the truth. "
            f"{count['exact']:,} of {count['fields']:,} in {count['documents']:,} documents; of the others "
            f"{count['unflagged']} were not flagged as unsure. {of}. The generator's layouts are the extractor's.",
            goal=f"value >= {99 if source == 'text' else 95}",
        )
        for source, count in read.items()
        if count["fields"]
    ]  # fmt: skip
    left_out = sum(len(file.completed) for file in done)
    made = sum(len(file.calls) for file in done)
    records += [
        record(
            "decisions", 100 * counts["same"] / len(files), "%",
            f"Cases that end as the policy says of the truth. {of}: {counts['approve']} approved, {counts['decline']} "
            f"declined, {counts['a person']} wait for a person; {counts['parked']} of these could have been decided "
            f"without, {counts['wrong']} were decided wrongly. Where both refer a case, {counts['other suggestion']} "
            "suggest another outcome.",
            goal="value >= 98",
        ),
        record(
            "decisions.wrong", counts["wrong"], "cases",
            f"Cases decided without a person otherwise than the policy says of the truth. {of}.", goal="value == 0",
        ),
        record(
            "reasons", counts["untrue reasons"], "reasons",
            f"Reasons in letters that decline which the truth does not bear out, of {counts['reasons']}. A rule has to "
            "be broken by the true documents; a factor has to have cost the points named, and the value that would "
            f"have helped has to give just these back. {of}.",
            goal="value == 0",
        ),
        record(
            "minutes", seconds / 60 / len(files), "minutes",
            f"Wall time per case, all at once on this machine. {of}. In cases that ended the agents made {made} calls "
            f"and left {left_out} steps to the workflow.",
        ),
    ]  # fmt: skip
    quality = next(row for row in card.card["against_baseline"] if row["approved"] == APPROVED[1])
    low, high = quality["cut_95"]
    records.append(
        record(
            "bad_rate", 100 * quality["bad_rate"], "% bad", better="lower",
            notes=f"Bad loans among the {quality['approved']:.0%} that the scorecard likes best, out of sample. Cut by "
            f"{quality['cut']:.0%}, 95 % interval {low:.0%} to {high:.0%} ({card.card['bootstrap']}). "
            f"{card.card['data']}. From the scorecard's model card.",
            command=card.card["command"],
            baseline=f"{card.card['baseline']}, at equal approval", baseline_value=100 * quality["baseline_bad_rate"],
        )
    )  # fmt: skip
    return records


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/loans-300"), help="folder of everything")
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=FIRST_SEED)
    parser.add_argument("--scanned", type=float, default=0.3, help="share of documents that are scans (5 s a page)")
    parser.add_argument("--model", default="stille-135m", help="of the agents; 'clerk': none")
    parser.add_argument("--endpoint", help="URL of an OpenAI-compatible API that has the model")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--faults", help="of the services: JSON, or 'none'; without it, realistic ones")
    parser.add_argument("--json", type=Path, help="merge the records into this ledger file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
