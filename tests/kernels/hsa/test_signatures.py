"""Rotations for signatures: orthogonal, and the learned one loses less where keys have preferred directions."""

import itertools

import pytest
import torch

from stille.errors import UnsupportedError
from stille.kernels.hsa import reference as ref
from stille.kernels.hsa import signatures


def anisotropic_keys(heads=2, n=600, dim=32, seed=0):
    """Clusters along few directions, as in real heads."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(heads, 12, dim, generator=random) * torch.logspace(1, -1, dim)
    which = torch.randint(0, 12, (heads, n), generator=random)
    noise = torch.randn(heads, n, dim, generator=random) * 0.3
    return torch.gather(centres, 1, which[..., None].expand(-1, -1, dim)) + noise


def test_learned_rotation_is_orthogonal_and_repeatable():
    rotation = signatures.learn_rotation(anisotropic_keys(), iterations=5)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(32).expand(2, -1, -1), atol=1e-5, rtol=0)
    assert torch.equal(rotation, signatures.learn_rotation(anisotropic_keys(), iterations=5))
    assert not torch.equal(rotation, signatures.learn_rotation(anisotropic_keys(), iterations=5, seed=1))


@pytest.mark.parametrize("bits", [1, 2])
def test_learned_rotation_loses_less_than_hadamard(bits):
    """Also on keys that it has not seen."""
    keys = anisotropic_keys(n=1200)
    learned = signatures.learn_rotation(keys[:, :800], bits=bits)
    fixed = ref.hadamard_rotation(32)
    for part in (keys[:, :800], keys[:, 800:]):
        assert (signatures.code_error(part, learned, bits) < 0.8 * signatures.code_error(part, fixed, bits)).all()


def test_a_rotation_is_learned_for_the_bits_that_decode_has():
    keys = anisotropic_keys()
    own, two, one = (signatures.learn_rotation(keys, 5, bits=bits) for bits in (None, 2, 1))
    assert torch.equal(own, two)
    assert (signatures.code_error(keys, own) < signatures.code_error(keys, one)).all()


@pytest.mark.parametrize("bits", [1, 2])
def test_more_rounds_do_not_lose_more(bits):
    keys = anisotropic_keys()
    learned = [signatures.learn_rotation(keys, iterations=n, bits=bits) for n in (0, 1, 4, 16)]
    errors = [signatures.code_error(keys, rotation, bits).sum() for rotation in learned]
    assert all(a >= b - 1e-4 for a, b in itertools.pairwise(errors))
    assert errors[0] > errors[-1]


def test_error_of_a_gaussian():
    """Signs keep 2/pi of what has no preferred direction, whatever the rotation; four levels about 0.88."""
    keys = torch.randn(1, 4000, 64, generator=torch.Generator().manual_seed(0))
    turn = ref.hadamard_rotation(64)
    assert float(signatures.code_error(keys, turn, 1)) == pytest.approx(1 - 2 / torch.pi, abs=0.01)
    assert float(signatures.code_error(keys, turn)) == pytest.approx(0.118, abs=0.01)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="kv_heads, keys, head_dim"):
        signatures.learn_rotation(torch.zeros(8, 8))
    with pytest.raises(UnsupportedError, match="at least 16"):
        signatures.learn_rotation(torch.zeros(1, 8, 16))
