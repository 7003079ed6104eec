"""The whole engine on the real default model."""

import pytest
import torch

from stille import LLM, SamplingParams
from stille.engine.build import assemble
from stille.engine.config import EngineConfig

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def exact(default_model) -> LLM:
    config = EngineConfig(dtype="fp32", device="cpu", max_model_len=1024, kv_cache_tokens=4096, max_num_seqs=8)
    return LLM.from_engine(assemble(default_model, config))


def test_it_answers_a_question_sensibly_and_stops(exact):
    (result,) = exact.chat(QUESTION, SamplingParams(temperature=0, max_tokens=40))
    assert "Paris" in result.outputs[0].text
    assert result.outputs[0].finish_reason == "stop"


def test_its_greedy_answers_are_those_of_transformers_alone_batched_and_cached(exact, default_model):
    prompts = [
        exact.prompts.render_chat([{"role": "user", "content": text}])
        for text in ("Name three colours.", "Write one sentence about the sea. " + "Be brief. " * 30, "2+2?")
    ]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    right = []
    for ids in prompts:
        ids_1T = torch.tensor([ids])
        out = default_model.model.generate(
            ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=12, do_sample=False, eos_token_id=None
        )
        right.append(out[0, len(ids) :].tolist())
    assert exact.generate(prompts[0], params)[0].outputs[0].token_ids == right[0]
    for _ in range(2):  # the second time with hits in the prefix cache
        results = exact.generate(prompts, params)
        assert [result.outputs[0].token_ids for result in results] == right
    assert exact.stats().prefix_hit_tokens > 0


def test_the_default_settings_answer_on_this_machine(default_model_path):
    llm = LLM(str(default_model_path))
    (result,) = llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=4))
    assert result.outputs[0].text.startswith(" Paris")
