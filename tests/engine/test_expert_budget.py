"""The compute dial in the engine: a budget of experts for each request."""

import numpy as np
import pytest
import torch

from stille import LLM, SamplingParams
from stille.engine.build import assemble
from stille.engine.config import PAGE_SIZE, EngineConfig
from stille.engine.executor import ExpertRange
from stille.errors import InvalidRequestError
from stille.model import LoadedModel, StilleConfig, StilleForCausalLM, expert_budget, record_routing
from stille.model.experts import expert_layers
from stille.model.routing import score_quantiles

PROMPTS = [list(range(5, 5 + n)) for n in (150, 7, 90, 33)]
BUDGETS = [1.5, None, 8, 4.0]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = StilleConfig(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, ffn_kinds=["experts"] * 2,
        experts={"num_experts": 8, "expert_size": 8, "shared_size": 32, "router_size": 0, "target_k": 3.0, "max_k": 8},
    )  # fmt: skip
    model = StilleForCausalLM(config).eval()
    with torch.no_grad(), record_routing(model):
        for layer in expert_layers(model):
            layer.gate.quantiles.copy_(score_quantiles(layer.gate.scores(torch.randn(1000, 64))))
    return model


@pytest.fixture
def make_llm(model, tokenizer):
    def make(**options):
        config = EngineConfig(model="tiny", device="cpu", dtype="fp32", kv_cache_tokens=2048, **options)
        return LLM.from_engine(assemble(LoadedModel(model, tokenizer, "tiny", "tiny", []), config))  # type: ignore

    return make


def params(budget, **more):
    return SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, expert_budget=budget, **more)


@torch.no_grad()
def expected(model, prompt, budget, count=12):
    """The model's own greedy answer at a budget, without cache or engine."""
    tokens = list(prompt)
    for _ in range(count):
        with expert_budget(model, budget):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("chunk", [40, 2048])
def test_mixed_budgets_answer_as_the_model_does(model, make_llm, chunk):
    llm = make_llm(max_num_seqs=3, max_num_batched_tokens=chunk)
    results = llm.generate(PROMPTS, [params(budget) for budget in BUDGETS])
    for prompt, budget, result in zip(PROMPTS, BUDGETS, results, strict=True):
        assert result.outputs[0].token_ids == expected(model, prompt, budget)
    answers = {tuple(llm.generate(PROMPTS[:1], params(budget))[0].outputs[0].token_ids) for budget in (1.5, 3, 8)}
    assert len(answers) > 1  # the dial does something here


def test_pages_are_shared_within_a_budget_only(make_llm):
    llm = make_llm()
    prompt = PROMPTS[0]

    def cached(budget):
        return llm.generate([prompt], params(budget))[0].usage.cached_tokens

    assert cached(2) == 0
    assert cached(4) == 0
    assert cached(2) == cached(4) == len(prompt) // PAGE_SIZE * PAGE_SIZE
    assert cached(None) == 0
    assert cached(3) == 128  # the model's own number, said


def test_what_cannot_be_asked_for(make_llm, make_engine):
    llm = make_llm()
    for budget in (8.5, 100):
        with pytest.raises(InvalidRequestError, match="1 to 8 experts") as error:
            llm.generate(PROMPTS[:1], params(budget))
        assert error.value.param == "expert_budget"
    for budget in (0.5, float("nan"), "4", True):
        with pytest.raises(InvalidRequestError, match="expert_budget"):
            params(budget)
    with pytest.raises(InvalidRequestError, match="no experts"):
        LLM.from_engine(make_engine()).generate([[1, 2]], params(4))


def test_words_for_budgets():
    own = ExpertRange(1, 16, 4.8)
    words = [own.for_effort(word) for word in ("minimal", "low", "medium", "high", "xhigh")]
    assert words == pytest.approx([2.4, 3.0, 4.8, 8.0, 16])
    tight = ExpertRange(4, 6, 4.8)
    assert (tight.for_effort("minimal"), tight.for_effort("high")) == (4, 6)


def test_a_step_gives_every_token_its_sequences_budget():
    from stille.engine.executor import StepInput

    one = np.ones(2, np.int32)
    step = StepInput(one, one, np.array([1, 3], np.int32), np.zeros(4, np.int64), one[:, None], one > 0, 1,
                     budgets=np.array([2, 5], np.float32))  # fmt: skip
    assert step.token_budgets().tolist() == [2, 5, 5, 5]
