"""Fixtures that every part shares: the real default model, fetched once through the store into the usual cache."""

from pathlib import Path

import pytest


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
