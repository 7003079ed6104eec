"""Settings of a pipeline that takes seconds, on the tiny checkpoint."""

import pytest

from stille.train.default import DefaultSettings


@pytest.fixture(scope="session")
def local_text(tmp_path_factory):
    """Two files to learn from, one to judge on."""
    folder = tmp_path_factory.mktemp("text")
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "old", "grey", "stones"]
    for name, start in (("a.txt", 0), ("b.txt", 3), ("law.txt", 5)):
        lines = [" ".join(words[(start + at * step) % len(words)] for at in range(12)) for step in range(1, 40)]
        (folder / name).write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def tiny_settings(tiny_checkpoint, local_text):
    """tiny_settings(**changes)."""

    def make(**changes) -> DefaultSettings:
        values = dict(
            base=str(tiny_checkpoint), name="tiny", text=[str(local_text / name) for name in ("a.txt", "b.txt")],
            judge=[["law", str(local_text / "law.txt")]], tokens=600, held_out_tokens=150, sequences=4, shard=8,
            answer_tokens=24, question_tokens=48, prefix_tokens=[4, 8], calibration_tokens=256, router_steps=3,
            num_experts=4, router_size=4, target_k=2, budgets=[1, 4], minutes=None, steps=4, rank=2, warmup=1, batch=2,
            micro_batch=2, length=32, judge_tokens=128,
        )  # fmt: skip
        return DefaultSettings.from_dict({**values, **changes})

    return make
