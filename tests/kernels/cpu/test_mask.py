import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.kernels.cpu.mask import best, restrict


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 200), st.sampled_from([0.01, 0.5, 0.99]), st.integers(0, 2**32 - 1))
def test_only_what_masks_allow_is_left_and_the_likeliest_of_it_is_best(rows, width, share, seed):
    random = np.random.default_rng(seed)
    logits_RV = random.integers(-20, 20, (rows, width)).astype(np.float32)  # equal ones among them
    allowed_RV = random.random((rows, width)) < share
    allowed_RV[:, 32:96] = random.random() < 0.5  # words that allow all or nothing
    allowed_RV[np.arange(rows), random.integers(0, width, rows)] = True
    padded = np.zeros((rows, -(-width // 32) * 32), bool)
    padded[:, :width] = allowed_RV
    padded[:, width:] = random.random() < 0.5  # bits behind the vocabulary mean nothing
    mask_RW = np.packbits(padded, axis=1, bitorder="little").view(np.int32)

    expected_RV = np.where(allowed_RV, logits_RV, -np.inf)
    assert np.array_equal(best(logits_RV, mask_RW), expected_RV.argmax(axis=1))
    chosen = np.flatnonzero(random.random(rows) < 0.7)
    left_RV = logits_RV.copy()
    restrict(left_RV, chosen, mask_RW[chosen])
    expected_RV[np.setdiff1d(np.arange(rows), chosen)] = logits_RV[np.setdiff1d(np.arange(rows), chosen)]
    assert np.array_equal(left_RV, expected_RV)
