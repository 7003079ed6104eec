"""What a draft head does between its products, against plain torch."""

import pytest
import torch

from stille.kernels.triton_support import interpreting

pytestmark = pytest.mark.skipif("not __import__('importlib').util.find_spec('triton')", reason="needs triton")
DEVICE = "cuda" if torch.cuda.is_available() and not interpreting() else "cpu"


def ints(values, dtype=torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def test_accept_stops_at_the_first_wrong_guess():
    from stille.kernels.fused.triton_draft import accept

    ids = ints([9, 1, 2, 3, 8, 7, 7, 5])  # three guesses, none, two of which the second is right but the first is not
    sampled = ints([1, 2, 4, 6, 3, 6, 7, 5])
    first, count = ints([0, 4, 5], torch.int32), ints([3, 0, 2], torch.int32)
    row, token = torch.full_like(first, -1), ints([-1, -1, -1])
    accept(sampled, ids, first, count, row, token)
    assert row.tolist() == [2, 4, 5]
    assert token.tolist() == [4, 3, 6]


@pytest.mark.parametrize("width", [24, 64])
def test_gather_normalises_each_part(width):
    from stille.kernels.fused.triton_draft import gather

    states = [torch.randn(5, width, device=DEVICE) * (i + 1) for i in range(3)]
    row = ints([4, 0], torch.int32)
    out = torch.full((2, 3 * width), float("nan"), device=DEVICE)
    gather(states, row, 1e-5, out)
    expected = torch.cat([torch.nn.functional.rms_norm(s[row.long()], (width,), eps=1e-5) for s in states], 1)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [40, 64])
def test_pick_takes_the_likeliest_and_moves_on(size):
    from stille.kernels.fused.triton_draft import pick

    torch.manual_seed(0)
    logits = torch.randn(3, size, device=DEVICE) * 3
    logits[1, 7] = logits[1, 20] = 50.0  # of equals the first
    vocabulary = torch.randperm(100, device=DEVICE)[:size]
    table, state = torch.randn(100, 24, device=DEVICE), torch.randn(3, 24, device=DEVICE)
    tokens, chances = torch.full((3, 2), -1, device=DEVICE), torch.zeros(3, 2, device=DEVICE)
    first = ints([5, 6, 7])
    moved = state.clone()
    pick(logits, vocabulary, table, moved, first, tokens, chances, 0)
    torch.testing.assert_close(moved, state + table[first])
    assert (tokens == -1).all()
    before = moved.clone()
    pick(logits, vocabulary, table, moved, first, tokens, chances, 1)
    best = logits.argmax(-1)
    assert tokens[:, 0].tolist() == vocabulary[best].tolist()
    torch.testing.assert_close(chances[:, 0], logits.softmax(-1).gather(1, best[:, None])[:, 0])
    torch.testing.assert_close(moved, before + table[vocabulary[best]])
    after = moved.clone()
    pick(logits, vocabulary, table, moved, first, tokens, chances, 2)
    assert torch.equal(moved, after)
    assert tokens[:, 1].tolist() == tokens[:, 0].tolist()
