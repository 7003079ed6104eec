"""Generated applications: reproducible, exactly described, and wrong where they say so."""

import json
from datetime import date

import pdfplumber
import pytest

from examples.loan_underwriting.documents import forms
from examples.loan_underwriting.documents.facts import SCENARIOS, TODAY, make_facts
from examples.loan_underwriting.documents.generate import world, write_case
from examples.loan_underwriting.documents.scan import scan
from examples.loan_underwriting.documents.sheet import Sheet, Style
from examples.loan_underwriting.normalise import fold


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    facts = make_facts(7)
    for folder in ("a", "b"):
        write_case(tmp_path / folder, facts, 0.2)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) >= 8
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    truth = json.loads((tmp_path / "a" / "truth.json").read_text())
    assert {document["scanned"] for document in truth["documents"]} == {False, True}
    assert make_facts(8) != facts


@pytest.mark.parametrize("seed", range(2))
def test_truth_says_what_is_printed_in_each_box(tmp_path, seed):
    truth = write_case(tmp_path, make_facts(seed), 0)
    for document in truth["documents"]:
        with pdfplumber.open(tmp_path / document["file"]) as pdf:
            assert len(pdf.pages) == document["pages"]
            for field in document["fields"][:40]:
                left, top, right, bottom = field["box"]
                crop = pdf.pages[field["page"]].crop((left - 1, top - 1, right + 1, bottom + 1))
                assert fold(crop.extract_text()) == fold(field["text"]), (document["file"], field["name"])


def test_a_scan_is_a_picture_and_nothing_else(tmp_path):
    sheet = Sheet(tmp_path / "card.pdf", Style(0, "sans", 9.0, 0, 0, 0))
    forms.identity(sheet, make_facts(4))
    before = sheet.save()
    after = scan(tmp_path / "card.pdf", before, "seed")
    assert [field.value for field in after] == [field.value for field in before]
    with pdfplumber.open(tmp_path / "card.pdf") as pdf:
        assert pdf.pages[0].chars == []
        assert len(pdf.pages[0].images) == 1


def test_clean_papers_add_up():
    for seed in range(20):
        facts = make_facts(seed, "clean")
        for slip in facts.slips:
            assert slip.gross - slip.deductions == slip.net
            assert slip.federal + slip.social + slip.medicare + slip.health == slip.deductions
        for months in facts.statements:
            assert months.opening + months.deposits - months.withdrawals == months.closing == months.rows[-1].balance


def test_each_scenario_has_what_it_is_named_for():
    made = {scenario: make_facts(11, scenario) for scenario in SCENARIOS}
    assert (
        made["altered_slip"].slips[-1].gross - made["altered_slip"].slips[-1].deductions
        == made["altered_slip"].slips[-1].net
    )
    base = made["altered_slip"].slips[-1]
    assert base.base + base.overtime != base.gross
    pay = next(row.amount for row in made["income_mismatch"].statements[-1].rows if "PAYROLL" in row.what)
    assert made["income_mismatch"].slips[-1].net > 1.2 * pay
    assert made["expired_identity"].person.identity_expires < TODAY
    assert made["name_mismatch"].slips[0].name != made["name_mismatch"].person.name
    assert any("QUICKLOAN" in row.what for row in made["undisclosed_debt"].statements[0].rows)
    assert made["missing_document"].missing
    assert made["injection"].injection
    known = world([made["unknown_employer"], made["sanctioned"]])
    assert made["unknown_employer"].employer not in known["employers"]
    assert known["sanctions"][0]["born"] == made["sanctioned"].person.born.isoformat()
    assert {make_facts(seed).scenario for seed in range(40)} == set(SCENARIOS)
    assert made["clean"].person.identity_expires > date(2026, 11, 16)
