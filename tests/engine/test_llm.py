"""The synchronous API."""

import os
import signal
from collections.abc import Callable

import pytest
import torch

from stille import LLM, SamplingParams
from stille.engine.build import Engine
from stille.engine.core import EngineCore
from stille.engine.torch_executor import TorchExecutor
from stille.errors import EngineFailedError, InvalidRequestError, UnsupportedError

GREEDY = SamplingParams(temperature=0, max_tokens=10)


@pytest.fixture
def llm(make_engine):
    return LLM.from_engine(make_engine(max_num_seqs=3, max_queue=2))


def test_a_list_in_a_list_out_in_order(llm, tokenizer):
    texts = [f"fox {'very ' * i}lazy" for i in range(9)]  # more than queue and slots together
    results = llm.generate(texts, GREEDY)
    assert [result.prompt for result in results] == texts
    for text, result in zip(texts, results, strict=True):
        assert result.finished
        (alone,) = llm.generate(text, GREEDY)
        assert alone.outputs[0].token_ids == result.outputs[0].token_ids
        assert alone.outputs[0].text == tokenizer.decode(alone.outputs[0].token_ids, skip_special_tokens=True)


def test_prompts_as_token_ids_and_params_one_each(llm):
    results = llm.generate([[1, 2, 3], [4, 5]], [GREEDY, SamplingParams(max_tokens=3, n=2)])
    assert [result.prompt_ids for result in results] == [[1, 2, 3], [4, 5]]
    assert [len(result.outputs) for result in results] == [1, 2]
    assert llm.generate([1, 2, 3], GREEDY)[0].outputs == results[0].outputs
    assert llm.generate([]) == []


def test_chat_uses_the_template(llm, tokenizer):
    messages = [{"role": "user", "content": "fox?"}]
    (result,) = llm.chat(messages, GREEDY)
    assert result.prompt == "<s>user: fox?</s><s>assistant:"
    assert result.prompt_ids[0] == tokenizer.bos_token_id
    both = llm.chat([messages, messages], GREEDY)
    assert [r.outputs for r in both] == [result.outputs] * 2
    with pytest.raises(InvalidRequestError, match="unknown role judge"):
        llm.chat([{"role": "judge", "content": "x"}])
    with pytest.raises(InvalidRequestError, match="empty"):
        llm.chat([])


def test_a_model_without_a_template_says_so(make_engine, tokenizer):
    import copy

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    engine = make_engine()
    with pytest.raises(UnsupportedError, match="no chat template"):
        LLM.from_engine(Engine(engine.core, plain, "plain")).chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    ("prompts", "params"),
    [
        ("", None),
        (["fine", ""], None),
        ([3.5], None),
        (["a\ud800"], None),
        (["one", "two"], [GREEDY]),
        ([[1], [100000]], None),
        (["x" * 5000], None),
    ],
)
def test_one_bad_prompt_refuses_the_whole_call_before_it_starts(llm, prompts, params):
    with pytest.raises(InvalidRequestError):
        llm.generate(prompts, params)
    assert llm.stats().requests == 0


class Disturbed(TorchExecutor):
    """Does something else in the middle of its fourth step."""

    def __init__(self, model, config, disturbance: Callable[[], None]):
        super().__init__(model, config)
        self.disturbance, self.steps = disturbance, 0

    def forward(self, step, ids_N):
        self.steps += 1
        if self.steps == 4:
            self.disturbance()
        return super().forward(step, ids_N)


def disturbed(make_engine, disturbance: Callable[[], None]) -> LLM:
    engine = make_engine()
    executor = Disturbed(engine.core.runner.executor.model, engine.core.config, disturbance)
    return LLM.from_engine(Engine(EngineCore(executor, engine.tokenizer, engine.core.config), engine.tokenizer, "x"))


def test_ctrl_c_leaves_no_sequence_behind_and_the_engine_usable(make_engine):
    llm = disturbed(make_engine, lambda: os.kill(os.getpid(), signal.SIGINT))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["one", "two"], GREEDY)
    stats = llm.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
    assert stats.steps == 4
    fresh = LLM.from_engine(make_engine())
    assert llm.generate("three", GREEDY)[0].outputs == fresh.generate("three", GREEDY)[0].outputs
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_broken_engine_says_so_from_then_on(make_engine):
    def break_down():
        raise torch.OutOfMemoryError("out of memory")

    llm = disturbed(make_engine, break_down)
    for _ in range(2):
        with pytest.raises(EngineFailedError, match="out of memory"):
            llm.generate("one", GREEDY)
