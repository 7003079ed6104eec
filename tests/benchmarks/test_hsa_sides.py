"""What the HSA benchmarks judge by: true attention mass, the alternatives' scores, planted needles, budgets."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from hsa_sides import exams, mass  # noqa: E402
from hsa_sides.gpu import Records  # noqa: E402
from hsa_sides.scores import SCORERS, Keys  # noqa: E402
from stille import ledger  # noqa: E402
from stille.kernels.hsa import HSAConfig  # noqa: E402
from stille.kernels.hsa import reference as ref  # noqa: E402

CONFIG = HSAConfig(budget=640, sinks=128, local=128, dense_below=0)
N, D = 1536, 32
SCALE = D**-0.5


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def heads() -> tuple[torch.Tensor, torch.Tensor]:
    return 3 * draw(4, N, D), draw(2, N, D, seed=1)


def weights(q_HND: torch.Tensor, k_KND: torch.Tensor) -> torch.Tensor:
    logits = torch.einsum("hmd,hnd->hmn", q_HND, k_KND.repeat_interleave(2, 0)) * SCALE
    return torch.softmax(logits.masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), -torch.inf), -1)


def test_mass_is_the_softmax_weight_of_each_leaf(heads):
    q_HND, k_KND = heads
    by_row = weights(q_HND, k_KND)
    by_tile = by_row.unflatten(1, (-1, 128)).mean(2).unflatten(-1, (-1, 64)).sum(-1)
    torch.testing.assert_close(mass.tile_mass(q_HND, k_KND, SCALE, 64), by_tile, rtol=1e-4, atol=1e-6)
    rows = torch.tensor([5, 700, N - 1])
    got = mass.row_mass(q_HND[:, rows], k_KND, rows, SCALE, 16)
    torch.testing.assert_close(got, by_row[:, rows].unflatten(-1, (-1, 16)).sum(-1), rtol=1e-4, atol=1e-6)


def test_no_choice_of_the_same_budget_beats_the_oracle(heads):
    q_HND, k_KND = heads
    truth = mass.tile_mass(q_HND, k_KND, SCALE, 64)
    tiles, leaves = truth.shape[1:]
    past = ref.past_leaves(tiles, leaves, 0, CONFIG, truth.device)
    forced = ref.forced_leaves(tiles, leaves, 0, CONFIG, truth.device)
    oracle = mass.recall_of(mass.ranked(truth, past, forced), truth, 10)
    ours, by_means = (
        (truth * ref.select(q_HND, k_KND, SCALE, replace(CONFIG, tail=0, **change))).sum(-1)
        for change in ({}, {"row_weight": 0})
    )
    chance = mass.recall_of(mass.ranked(draw(4, tiles, leaves), past, forced), truth, 10)
    assert (ours <= oracle + 1e-5).all()
    assert oracle[:, :5].min() > 0.99999  # the budget holds the whole past
    assert oracle.mean() > chance.mean() + 0.01
    ranked_by_means = mass.ranked(ref.shares(log_mass(q_HND, k_KND), past), past, forced)
    torch.testing.assert_close(mass.recall_of(ranked_by_means, truth, 10), by_means, rtol=1e-4, atol=1e-4)


def log_mass(q_HND: torch.Tensor, k_KND: torch.Tensor) -> torch.Tensor:
    means = ref.pool_queries(q_HND, 128) * SCALE
    return torch.stack([SCORERS["keys"](q, Keys(k_KND[h // 2], 64)) for h, q in enumerate(means)])


def test_rows_read_what_is_always_read_and_never_the_future():
    rows = torch.tensor([200, 1000, N - 1])
    past, forced = mass.row_leaves(rows, N // 16, CONFIG)
    b = torch.arange(N // 16)
    assert (past == (b[None] * 16 + 15 <= rows[:, None])).all()  # complete leaves
    for row, always in zip(rows.tolist(), forced, strict=True):
        positions = [p for leaf in b[always].tolist() for p in range(leaf * 16, leaf * 16 + 16) if p <= row]
        assert set(range(min(128, row))) <= set(positions)
        assert set(range(row - 127, row + 1)) <= set(positions)
        assert len(positions) <= 128 + 128 + 32


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_finds_a_leaf_that_the_query_points_to(name):
    k = draw(N, D)
    u = torch.nn.functional.normalize(draw(D, seed=2), dim=0)
    k[640:704] += 4 * u  # leaf 10, all of it: even a mean can see it
    rotation = torch.linalg.qr(draw(D, D, seed=3))[0]
    score = SCORERS[name]((8 * u * SCALE)[None], Keys(k, 64, rotation))
    assert score.shape == (1, N // 64)
    assert score.argmax() == 10


def test_scores_are_what_they_say():
    q, k = draw(3, D) * SCALE, draw(N, D, seed=1)
    keys = Keys(k, 64)
    logits = (q @ k.T).unflatten(-1, (-1, 64))
    torch.testing.assert_close(SCORERS["keys"](q, keys), logits.logsumexp(-1))
    assert (SCORERS["quest"](q, keys) >= logits.amax(-1) - 1e-5).all()
    coded = ref.coded_keys(k[None], replace(CONFIG, codes="sign"))[0]
    torch.testing.assert_close(SCORERS["signs"](q, keys), SCORERS["keys"](q, Keys(coded, 64)), rtol=1e-4, atol=1e-4)
    constant = k.unflatten(0, (-1, 64))[:, :1].expand(-1, 64, -1).flatten(0, 1)  # leaves of equal keys: all agree
    for name in ("mean", "submeans", "variance", "random", "signs"):
        shares = torch.softmax(SCORERS[name](q, Keys(constant, 64)), -1)
        torch.testing.assert_close(shares, torch.softmax(SCORERS["keys"](q, Keys(constant, 64)), -1), msg=name)


def field(seed: int = 0) -> exams.Field:
    return exams.Field("test", draw(2, 4, N, D, seed=seed), draw(2, 2, N, D, seed=1), draw(2, 2, N, D, seed=2), SCALE)


@pytest.mark.parametrize("case", exams.CASES, ids=lambda case: case.name)
def test_dense_attention_finds_what_was_planted(case):
    hidden_in = field()
    before = hidden_in.k_BKND.clone()
    exam = case.make(hidden_in, replace(CONFIG, budget=512), 0)
    out, weight = exam.dense()
    assert out.isfinite().all()
    assert torch.equal(hidden_in.k_BKND, before)  # a field serves many exams
    if exam.needles_BHP is None:
        assert (exam.q_BHMD[:, :, exam.rows] == 0).all()
        return
    # Two heads of a group share keys: the other's needles take a little.
    assert weight.sum(-1).median() > 0.7
    start = exam.k_BKND.shape[2] - exam.q_BHMD.shape[2]
    assert (exam.needles_BHP >= 128).all()  # outside the sinks
    assert (exam.needles_BHP < start - 128).all()  # and the window


def test_a_crowd_points_away_from_its_needle():
    exam = exams.plant(exams.cut(field(), N - 128, 1, 0, 128), CONFIG, 1, seed=0, crowded=True)
    assert exam.needles_BHP is not None
    at = int(exam.needles_BHP[0, 0, 0])
    q, leaf = exam.q_BHMD[0, 0, 0], exam.k_BKND[0, 0, at // 64 * 64 : at // 64 * 64 + 64]
    logits = leaf @ q * SCALE
    assert logits.argmax() == at % 64
    assert logits.mean() < 0


def test_more_needles_than_room_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        exams.hide(2, 10, 64, 9, True, torch.Generator())


def test_records_outlive_a_run_that_is_cut_off_but_not_a_wrong_one(tmp_path):
    file, part = tmp_path / "out.json", tmp_path / "out.json.part"
    first, second = (ledger.measure(f"hsa.test.{i}", 1.0, "ms", command="python x.py", notes="A test.") for i in "ab")
    records = Records(file)
    records.append(first)
    assert [r.id for r in ledger.read(part)] == ["hsa.test.a"], "kept as it comes"
    assert not file.exists()
    records.append(second)
    records.finish()
    assert [r.id for r in ledger.read(file)] == ["hsa.test.a", "hsa.test.b"]
    assert not part.exists()
    wrong = Records(tmp_path / "wrong.json")
    wrong.append(first)
    wrong.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
