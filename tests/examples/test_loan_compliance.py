"""Rules, decisions, and reasons that are true: what a reason names is what decided, and mending it helps."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.loan_underwriting.compliance import fairness
from examples.loan_underwriting.compliance.assess import ask, features, instalment, measures
from examples.loan_underwriting.compliance.decide import decide
from examples.loan_underwriting.compliance.oracle import judge, read_papers
from examples.loan_underwriting.compliance.papers import from_truth
from examples.loan_underwriting.compliance.policy import MEASURES, POLICY, PolicyFileError, check, load_policy
from examples.loan_underwriting.documents.facts import TODAY, make_facts
from examples.loan_underwriting.documents.generate import world, write_case
from examples.loan_underwriting.extraction import GeometryExtractor
from examples.loan_underwriting.scoring.data import FACTORS
from examples.loan_underwriting.scoring.scorecard import Scorecard
from examples.loan_underwriting.services.world import World

RULES = load_policy()
CARD = Scorecard.load()
FEATURES = st.fixed_dictionaries(
    {f.name: st.sampled_from(f.levels) if f.levels else st.integers(1, 20_000) for f in FACTORS}
)
TRUTHS = {"employer_known", "identity_known", "card_matches", "names_agree", "numbers_agree", "bureau_file"}
SOUND = {rule.measure: rule.enough for rule in RULES.rules} | {"amount": 500_000}
MEASURED = st.fixed_dictionaries(
    {name: st.none() | (st.booleans() if name in TRUTHS else st.integers(-20_000, 200_000)) for name in MEASURES}
)


@cache
def papers_of(seed, scenario, tmp):
    facts = make_facts(seed, scenario)
    return from_truth(write_case(tmp, facts, 0)), World.model_validate(world([facts]))


@pytest.mark.parametrize(
    ("scenario", "rule"),
    [
        ("income_mismatch", "pay-arrives"),
        ("altered_slip", "slip-sums"),
        ("expired_identity", "identity-valid"),
        ("name_mismatch", "names"),
        ("sanctioned", "sanctions"),
        ("undisclosed_debt", "debts-disclosed"),
        ("unknown_employer", "employer"),
        ("missing_document", "complete"),
        ("injection", "no-instructions"),
    ],
)
def test_each_scenario_fails_its_rule_and_goes_to_a_person(tmp_path, scenario, rule):
    papers, known = papers_of(31, scenario, tmp_path)
    results = check(RULES, measures(papers, ask(known, papers), TODAY))
    assert results[rule] is False
    decision = judge(papers, known, RULES, CARD)
    assert decision.outcome == "refer"
    assert rule in [reason.id for reason in decision.reasons]
    assert not decision.straight_through


def test_clean_papers_fail_no_rule_but_what_they_can_afford(tmp_path):
    for seed in range(6):
        papers, known = papers_of(seed, "clean", tmp_path / str(seed))
        results = check(RULES, measures(papers, ask(known, papers), TODAY))
        failed = {rule.group for rule in RULES.rules if not results[rule.id]}
        assert failed <= {"affordability"}, results


def test_text_papers_are_decided_as_from_their_truth(tmp_path):
    papers, known = papers_of(4, "injection", tmp_path)
    kept = {"application.pdf", "identity.pdf", "payslip-3.pdf", "statement-3.pdf"}
    for path in [path for path in tmp_path.glob("*.pdf") if path.name not in kept]:
        path.unlink()
    papers = [paper for paper in papers if paper.file in kept]
    read = read_papers(tmp_path, GeometryExtractor())
    assert judge(read, known, RULES, CARD) == judge(papers, known, RULES, CARD)
    assert measures(read, ask(known, read), TODAY) == measures(papers, ask(known, papers), TODAY)


@given(MEASURED, FEATURES)
def test_every_reason_is_what_decided_and_mending_it_helps(measured, scored):
    decision = decide(RULES, CARD, measured, scored)
    assert (decision.outcome == "approve") == (decision.reasons == ())
    assert decision.adverse == (decision.outcome == "decline")
    for reason in decision.reasons:
        if reason.source == "rule":
            rule = next(rule for rule in RULES.rules if rule.id == reason.id)
            assert not rule.holds(measured[rule.measure])
            mended = check(RULES, {**measured, rule.measure: rule.enough})
            assert reason.would_help == rule.enough
            unknown = measured.get(rule.measure) is None
            assert reason.text == rule.reason if not unknown else reason.text.startswith("Could not be checked: ")
            assert mended[rule.id]
            assert all(mended[id] or not held for id, held in check(RULES, measured).items())
        else:
            assert reason.points_lost > 0
            better = decide(RULES, CARD, measured, {**scored, reason.id: reason.would_help})
            assert better.points == (decision.points or 0) + reason.points_lost


@given(MEASURED, FEATURES)
def test_what_is_approved_holds_every_rule_and_what_is_declined_could_be_judged(measured, scored):
    decision = decide(RULES, CARD, measured, scored)
    results = check(RULES, measured)
    if decision.outcome == "approve":
        assert all(results.values())
        assert decision.points is not None
        assert decision.points >= RULES.score.approve_from
    if decision.outcome == "decline":
        assert None not in results.values()
        assert all(results[rule.id] for rule in RULES.rules if rule.otherwise == "refer")
    if decision.straight_through:
        assert decision.outcome != "refer"
        assert measured["amount"] is not None
        assert measured["amount"] <= RULES.straight_through.up_to


@given(FEATURES)
def test_mending_all_that_was_lost_approves(scored):
    mended, decision = dict(scored), decide(RULES, CARD, SOUND, scored)
    while decision.reasons:
        mended |= {reason.id: reason.would_help for reason in decision.reasons}
        decision = decide(RULES, CARD, SOUND, mended)
    assert decision.outcome == "approve"


def test_declines_name_at_most_the_four_largest_losses():
    worst = {f.name: f.bins[0].levels[0] if f.bins[0].levels else 20_000 for f in CARD.factors}
    decision = decide(RULES, CARD, SOUND, worst)
    assert decision.outcome == "decline"
    losses = [reason.points_lost for reason in decision.reasons]
    assert losses == sorted((p.lost for p in CARD.score(worst).factors), reverse=True)[:4]


def test_without_features_a_person_decides():
    assert decide(RULES, CARD, SOUND, None).outcome == "refer"


def test_features_need_all_that_is_scored(tmp_path):
    papers, known = papers_of(2, "clean", tmp_path)
    assert CARD.score(features(papers, ask(known, papers), TODAY)).points > 300
    with pytest.raises(ValueError, match="refer"):
        features([p for p in papers if p.type != "application"], ask(known, papers), TODAY)


@pytest.mark.parametrize(
    ("old", "new", "at", "message"),
    [
        ("approve_from: 580", "approve_from: 5.5", "approve_from:", "integer"),
        ("approve_from: 580", "approve_from: 500", "score:", "above"),
        ("measure: unsure_fields", "measure: star_sign", "star_sign", "star_sign"),
        ("documents_missing, at_most: 0", "documents_missing", "id: complete", "condition"),
        (
            "similarity, at_most: 8499, otherwise: refer",
            "similarity, at_most: 1, otherwise: ignore",
            "ignore",
            "decline",
        ),
        ("id: readable", "id: complete", "rules:", "same id"),
        ("up_to: 1000000", "up_to: 1000000\n  up_to: 1", "up_to: 1000000", "twice"),
        ("up_to: 1000000", "up_to: [", "- {id: complete", "expected"),
        ("version: 2026-11-16", "version: 2026-11-16\nmood: good", "mood: good", "Extra"),
    ],
)
def test_a_wrong_policy_is_refused_with_its_line(tmp_path, old, new, at, message):
    path = tmp_path / "policy.yaml"
    text = POLICY.read_text()
    assert text.count(old) == 1
    text = text.replace(old, new)
    path.write_text(text)
    line = 1 + next(i for i, content in enumerate(text.splitlines()) if at in content)
    with pytest.raises(PolicyFileError, match=message) as error:
        load_policy(path)
    assert f"policy.yaml:{line}:" in str(error.value)


@given(st.integers(10_000, 2_000_000), st.integers(1, 120))
def test_instalments_pay_a_loan_back(amount, months):
    left = float(amount)
    for _ in range(months):
        left += left * 0.119 / 12 - instalment(amount, months)
    assert abs(left) <= months * 1.5


def test_the_fairness_report_has_intervals_and_says_what_it_is_worth():
    rows = {row["attribute"]: row for row in fairness.report(draws=60)["attributes"]}
    for row in rows.values():
        assert row["ratio_95"][0] <= row["ratio"] <= row["ratio_95"][1]
        assert row["ratio"] == pytest.approx(min(row["approved"].values()) / max(row["approved"].values()), abs=0.001)
        assert sum(row["groups"].values()) == 1000
    assert "not evidence" in rows["sex"]["note"]
