"""Fields from text PDFs and scans: exact, with their places, and honest about what could not be read."""

import random
from dataclasses import replace

import numpy as np
import pypdfium2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reportlab.pdfgen import canvas

from examples.loan_underwriting import normalise
from examples.loan_underwriting.documents import forms, tables
from examples.loan_underwriting.documents.facts import make_facts
from examples.loan_underwriting.documents.generate import write_case
from examples.loan_underwriting.documents.scan import degrade, scan, turned
from examples.loan_underwriting.documents.sheet import Sheet, Style
from examples.loan_underwriting.extraction import GeometryExtractor
from examples.loan_underwriting.extraction.reading import joined, skew
from examples.loan_underwriting.extraction.types import Span
from examples.loan_underwriting.measure import compare


@given(st.integers(-(10**9), 10**9))
def test_money_is_read_as_it_is_written(cents):
    assert normalise.money(normalise.dollars(cents)) == cents
    assert normalise.money(f"({normalise.dollars(abs(cents))})") == -abs(cents)


@given(st.dates())
def test_dates_are_read_in_every_form(day):
    if day.year >= 1000:
        for form in (
            f"{day:%m/%d/%Y}",
            day.isoformat(),
            f"{day:%b} {day.day}, {day.year}",
            f"{day.day} {day:%B} {day.year}",
        ):
            assert normalise.day(form) == day.isoformat()


@pytest.mark.parametrize("text", ["", "12", "1,234", "N/A", "12.345", "$", "13/45/2026", "Feb 30, 2026", "hello"])
def test_what_is_no_money_and_no_date_is_none(text):
    assert normalise.money(text) is None
    assert normalise.day(text) is None


@pytest.mark.parametrize("layout", range(3))
def test_text_documents_of_every_layout_are_exact(tmp_path, layout):
    facts = make_facts(900 + layout, "clean")
    style = Style(layout, "serif" if layout == 1 else "sans", 9.0, 3.0, 2.0, layout)
    draws = {
        "application": lambda sheet: forms.application(sheet, facts),
        "w2": lambda sheet: forms.tax_form(sheet, facts),
        "identity": lambda sheet: forms.identity(sheet, facts),
        "payslip": lambda sheet: tables.payslip(sheet, facts, facts.slips[0]),
        "statement": lambda sheet: tables.statement(sheet, facts, facts.statements[0]),
    }
    for kind, draw in draws.items():
        sheet = Sheet(tmp_path / f"{kind}.pdf", style)
        draw(sheet)
        truth = {field.name: field for field in sheet.save()}
        result = GeometryExtractor().extract(tmp_path / f"{kind}.pdf")
        found = result.all_fields()
        assert result.type == kind
        assert {name: f.value for name, f in found.items()} == {name: f.value for name, f in truth.items()}
        assert result.unsure == ()
        for name, field in truth.items():
            assert found[name].page == field.page
            assert found[name].box == pytest.approx(field.box, abs=6)


def test_a_scanned_card_is_read_with_places_on_the_crooked_page(tmp_path):
    facts = make_facts(901, "clean")
    sheet = Sheet(tmp_path / "card.pdf", Style(0, "sans", 9.0, 0.0, 0.0, 1))
    forms.identity(sheet, facts)
    fields = scan(tmp_path / "card.pdf", sheet.save(), "a scan")
    assert pypdfium2.PdfDocument(tmp_path / "card.pdf")[0].get_textpage().get_text_range() == ""
    document = {
        "type": "identity", "layout": 0, "scanned": True, "pages": 1,
        "fields": [{"name": f.name, "value": f.value, "page": f.page, "box": f.box} for f in fields],
    }  # fmt: skip
    result = compare(GeometryExtractor().extract(tmp_path / "card.pdf"), document)
    assert result["classified"] == "identity"
    assert len(result["wrong"]) <= 0.05 * result["fields"]
    assert result["placed"] == result["fields"] - len(result["wrong"])


@settings(max_examples=5, deadline=None)
@given(st.floats(-2, 2), st.integers(0, 100))
def test_the_turn_of_a_page_is_found(degrees, seed):
    page = np.full((800, 620), 255, np.uint8)
    rng = np.random.default_rng(seed)
    for top in range(60, 740, 22):  # lines of letters, each a small block
        for left in range(50, 50 + int(rng.integers(200, 500)), 9):
            page[top : top + 9, left : left + int(rng.integers(3, 7))] = 0
    image = pypdfium2_image(degrade(page, random.Random(seed), degrees))
    assert skew(image) == pytest.approx(degrees, abs=0.16)


def pypdfium2_image(jpeg: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(jpeg)))


@given(st.floats(-2, 2), st.tuples(st.floats(0, 500), st.floats(0, 700)))
def test_a_turned_box_holds_its_turned_middle(degrees, corner):
    box = (*corner, corner[0] + 80, corner[1] + 10)
    left, top, right, bottom = turned(box, degrees, (612, 792))
    assert right - left >= 79
    assert bottom - top >= 9.9


def test_a_tampered_statement_is_reported_as_it_is_printed(tmp_path):
    facts = make_facts(902, "clean")
    months = facts.statements[0]
    rows = list(months.rows)
    at = next(i for i, row in enumerate(rows) if "PAYROLL" in row.what)
    rows[at] = replace(rows[at], amount=rows[at].amount + 100_000)
    sheet = Sheet(tmp_path / "s.pdf", Style(0, "sans", 9.0, 0, 0, 0))
    tables.statement(sheet, facts, replace(months, rows=tuple(rows)))
    sheet.save()
    result = GeometryExtractor().extract(tmp_path / "s.pdf")
    assert result.all_fields()[f"transactions[{at}].amount"].value == rows[at].amount
    assert f"transactions[{at}].amount" in result.unsure


def test_pieces_of_a_phrase_are_joined_and_columns_are_not():
    pieces = [
        Span("2026", (97, 128, 123, 138), 0.9),
        Span("Sep 2,", (58, 127, 99, 140)),
        Span("RENT", (137, 126, 170, 139)),
        Span("Sep 3, 2026", (58, 144, 124, 156)),
    ]
    assert [(span.text, span.confidence) for span in joined(pieces)] == [
        ("Sep 2, 2026", 0.9),
        ("Sep 3, 2026", 1.0),
        ("RENT", 1.0),
    ]


@pytest.mark.parametrize("lost", [0, 3, -1])
def test_a_statement_with_a_lost_row_is_not_taken_for_whole(tmp_path, lost):
    facts = make_facts(903, "clean")
    months = facts.statements[0]
    rows = [row for row in months.rows if row is not months.rows[lost]]
    sheet = Sheet(tmp_path / "s.pdf", Style(1, "sans", 9.0, 0, 0, 0))
    tables.statement(sheet, facts, replace(months, rows=tuple(rows)))
    sheet.save()
    assert "transactions" in GeometryExtractor().extract(tmp_path / "s.pdf").unsure


def test_bad_input(tmp_path):
    path = tmp_path / "x.pdf"
    path.write_bytes(b"not a PDF")
    with pytest.raises(ValueError, match="readable PDF"):
        GeometryExtractor().extract(path)
    letter = canvas.Canvas(str(path), invariant=1)
    letter.drawString(72, 700, "Dear Sir or Madam, this is a letter.")
    letter.save()
    result = GeometryExtractor().extract(path)
    assert result.type == "unknown"
    assert result.fields == {}


def test_a_missing_value_is_listed_as_unsure(tmp_path):
    sheet = Sheet(tmp_path / "id.pdf", Style(2, "sans", 9.0, 0, 0, 0))
    entries = [
        ("Identification number", "B1234567", ("n", 0)),
        ("Last name", "DOE", ("s", 0)),
        ("Born", "tomorrow", ("b", 0)),
    ]
    sheet.text(96, 112, "National Identification Card", size=13)
    sheet.pairs(210, 134, entries, "inline", 27, 0)
    sheet.save()
    result = GeometryExtractor().extract(tmp_path / "id.pdf")
    assert result.value("number") == "B1234567"
    assert {"born", "given", "expires"} <= set(result.unsure)
    assert "born" not in result.fields


def test_injected_text_is_data(tmp_path):
    facts = next(f for f in (make_facts(s, "injection") for s in range(20)) if f.injected_into == "application")
    truth = write_case(tmp_path, facts, 0)
    form = next(d for d in truth["documents"] if d["type"] == "application")
    result = GeometryExtractor().extract(tmp_path / "application.pdf")
    assert {f["name"]: f["value"] for f in form["fields"]} == {n: f.value for n, f in result.fields.items()}
    assert facts.injection
    assert facts.injection[:30] in result.text
