"""The blackboard: typed, versioned, with provenance; sources that disagree are both kept."""

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, model_validator

from stille.agents.blackboard import Blackboard, Source, VersionConflictError
from stille.agents.journal import Direct
from stille.errors import ConfigError

AT = datetime(2026, 1, 2, tzinfo=UTC)
SLIP = Source(document="payslip.pdf", page=1, box=(10, 20, 110, 32))


class Case(BaseModel):
    name: str
    income: Decimal = Field(ge=0)
    born: date | None = None
    notes: list[str] = []

    @model_validator(mode="after")
    def _not_nobody(self):
        if self.name == "nobody" and self.income:
            raise ValueError("nobody earns nothing")
        return self


def filled() -> Blackboard[Case]:
    board = Blackboard(Case)
    board.write("name", "Ada", by="intake", at=AT)
    board.write("income", "5000.10", by="extractor", source=SLIP, confidence=0.9, labels=frozenset({"personal"}), at=AT)
    return board


def test_values_have_the_types_of_the_model():
    board = filled()
    assert board.value("income") == Decimal("5000.10")
    assert board.model() == Case(name="Ada", income=Decimal("5000.10"))
    board.write("born", "1990-02-03", by="extractor")
    assert board.model().born == date(1990, 2, 3)


@pytest.mark.parametrize(("field", "value"), [("income", "much"), ("income", -1), ("born", "soon"), ("notes", "x")])
def test_values_of_other_types_are_refused_and_nothing_is_written(field, value):
    board = filled()
    with pytest.raises(ConfigError, match=field):
        board.write(field, value, by="extractor")
    assert board.version == 2
    with pytest.raises(ConfigError, match="no field 'age', only name, income"):
        board.write("age", 3, by="extractor")
    with pytest.raises(ConfigError, match="no field 'age'"):
        board.claims("age")


def test_claims_say_where_they_come_from():
    (claim,) = filled().claims("income")
    assert (claim.by, claim.source, claim.confidence, claim.at, claim.version) == ("extractor", SLIP, 0.9, AT, 1)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        filled().write("name", "B", by="x", confidence=1.5)


def test_compare_and_set():
    board = filled()
    version = board.field_version("name")
    board.write("name", "Ada L.", by="intake", expected_version=version)
    with pytest.raises(VersionConflictError, match="name has version 2, but version 1 was expected") as caught:
        board.write("name", "Eve", by="intake", expected_version=version)
    assert caught.value.version == 2
    assert board.value("name") == "Ada L."
    board.write("born", None, by="intake", expected_version=0)


def test_sources_that_disagree_are_both_kept_until_somebody_decides():
    board = filled()
    statement = Source(document="statement.pdf", page=3)
    board.write("income", 4800, by="extractor", source=statement)
    assert [claim.source for claim in board.conflicts()["income"]] == [SLIP, statement]
    with pytest.raises(ConfigError, match=r"income is disputed.*4800"):
        board.value("income")
    with pytest.raises(ConfigError, match="disputed"):
        board.model()
    assert '"disputed"' in board.view().content
    board.write("income", 4800, by="Ms Underwriter", settles=True)
    assert not board.conflicts()
    assert board.value("income") == 4800
    assert [claim.value for claim in board.history("income")] == ["5000.10", "4800", "4800"]


def test_an_author_may_correct_himself_and_sources_may_agree():
    board = filled()
    board.write("income", "5001", by="extractor", source=SLIP)
    board.write("income", 5001, by="checker")
    assert not board.conflicts()
    assert len(board.claims("income")) == 2
    assert board.value("income") == 5001


def test_what_is_missing_is_said():
    board = Blackboard(Case)
    board.write("name", "nobody", by="x")
    with pytest.raises(ConfigError, match="income is missing"):
        board.model()
    board.write("income", 1, by="x")
    with pytest.raises(ConfigError, match=r"do not go together.*nobody earns nothing"):
        board.model()
    assert board.value("notes") == []


def test_a_view_keeps_labels_and_is_limited_to_its_fields():
    board = filled()
    board.write("notes", ["call back"], by="caller", labels=frozenset({"untrusted"}))
    view = board.view()
    assert view.labels == {"personal", "untrusted"}
    assert "payslip.pdf, page 1" in view.content
    assert board.view(["name"]).labels == frozenset()
    assert "5000" not in board.view(["name"]).content


def test_diff():
    board = filled()
    board.write("income", 4800, by="other")
    board.write("name", "Ada", by="other")
    (change,) = board.diff(2)
    assert (change.field, change.before, change.after) == ("income", ("5000.10",), ("5000.10", "4800"))
    assert board.diff(board.version) == []
    assert {change.field for change in board.diff(0)} == {"name", "income"}
    with pytest.raises(ConfigError, match="from 0 to 4"):
        board.diff(5)


def test_history_goes_through_json():
    board = filled()
    again = Blackboard.from_json(Case, board.to_json())
    assert again.to_json() == board.to_json()
    assert again.claims("income") == board.claims("income")
    for bad in (
        [{"field": "name"}],
        [{**board.to_json()[0], "version": 3}],
        "x",
        [{**board.to_json()[0], "field": "age"}],
    ):
        with pytest.raises((ConfigError, VersionConflictError)):
            Blackboard.from_json(Case, bad)


async def test_a_resumed_run_has_the_recorded_state():
    class Recorded(Direct):
        kept: dict = {}

        async def step(self, name, run):
            if name not in self.kept:
                self.kept[name] = await run()
            return self.kept[name]

    first = filled()
    await first.record(Recorded())
    resumed = Blackboard(Case)
    resumed.write("name", "Ada", by="intake")  # at another time than in the first run
    await resumed.record(Recorded())
    assert resumed.to_json() == first.to_json()


writes = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y", None]), st.integers(0, 3), st.booleans()), max_size=12
)


@given(writes, st.data())
def test_nothing_is_lost_and_diffs_add_up(steps, data):
    board = Blackboard(Case)
    for by, document, value, settles in steps:
        source = None if document is None else Source(document=document)
        board.write("income", value, by=by, source=source, settles=settles, at=AT)
    assert [claim.version for claim in board.history("income")] == list(range(1, len(steps) + 1))
    assert Blackboard.from_json(Case, board.to_json()).to_json() == board.to_json()
    last = {}
    for by, document, value, settles in steps:
        if settles:
            last.clear()
        last[by, document] = str(value)
    assert {claim.value for claim in board.claims("income")} == set(last.values())
    assert bool(board.conflicts()) == (len(set(last.values())) > 1)
    version = data.draw(st.integers(0, len(steps)))
    partial = Blackboard.from_json(Case, board.to_json()[:version])
    for change in board.diff(version):
        assert set(change.before) == {claim.value for claim in partial.claims("income")}
        assert set(change.after) == set(last.values())
