"""What the policy says of generated applications: from their truth, and from what extraction read of them.

python -m examples.loan_underwriting.compliance.oracle loans --extract
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from examples.loan_underwriting.compliance.assess import ask, features, measures
from examples.loan_underwriting.compliance.decide import Decision, decide
from examples.loan_underwriting.compliance.papers import Papers, from_extraction, from_truth, load_truth
from examples.loan_underwriting.compliance.policy import Policy, load_policy
from examples.loan_underwriting.documents.facts import TODAY
from examples.loan_underwriting.extraction import Extractor, GeometryExtractor
from examples.loan_underwriting.scoring.scorecard import Scorecard
from examples.loan_underwriting.services.world import World, load_world


def read_papers(folder: Path, extractor: Extractor) -> Papers:
    """All PDFs of an application, in the order of their names."""
    return [from_extraction(extractor.extract(path)) for path in sorted(folder.glob("*.pdf"))]


def judge(papers: Papers, world: World, policy: Policy, card: Scorecard) -> Decision:
    """The decision on papers, with the services' answers taken from the world."""
    reports = ask(world, papers)
    try:
        scored = features(papers, reports, TODAY)
    except ValueError:
        scored = None
    return decide(policy, card, measures(papers, reports, TODAY), scored)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loans", type=Path, help="what documents.generate wrote")
    parser.add_argument("--extract", action="store_true", help="also decide on what is read from the PDFs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    world, policy, card = load_world(args.loans / "world.json"), load_policy(), Scorecard.load()
    rows: list[dict[str, Any]] = []
    for folder in sorted(path.parent for path in args.loans.glob("*/truth.json")):
        truth = load_truth(folder)
        row = {"application": truth["application"], "scenario": truth["scenario"]}
        row["truth"] = judge(from_truth(truth), world, policy, card).model_dump()
        if args.extract:
            row["extracted"] = judge(read_papers(folder, GeometryExtractor()), world, policy, card).model_dump()
        rows.append(row)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    counts = Counter((row["scenario"], row["truth"]["outcome"]) for row in rows)
    for (scenario, outcome), count in sorted(counts.items()):
        print(f"{scenario:18}{outcome:9}{count:>4}")
    if args.extract:
        same = sum(row["truth"]["outcome"] == row["extracted"]["outcome"] for row in rows)
        worse = sum(row["extracted"]["outcome"] == "approve" != row["truth"]["outcome"] for row in rows)
        print(f"{same} of {len(rows)} decided as from the truth; {worse} approved that should not have been")


if __name__ == "__main__":
    main()
