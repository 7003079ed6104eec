"""Fixtures that every part shares: the real default model, fetched once through the store into the usual cache."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Before anything imports Triton: its interpreter runs the GPU kernels' tests on CPU tensors.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def default_model_path() -> Path:
    """The default model's GGUF file; the first run on a machine fetches it."""
    from stille.model.store import DEFAULT_MODEL, resolve

    return resolve(DEFAULT_MODEL)


@pytest.fixture(scope="session")
def default_model(default_model_path):
    """The default model in float32 with its tokenizer (a `LoadedModel`), shared: do not change it."""
    from stille.model import load_model

    return load_model(default_model_path, progress=False)
