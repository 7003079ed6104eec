"""Kernels' tests use small tensors: torch computes on one thread, which is faster, and far faster on a busy machine."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
