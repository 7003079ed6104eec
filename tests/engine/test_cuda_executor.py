"""The CUDA executor against the model's own forward. Without a GPU its kernels run in Triton's interpreter."""

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from stille.engine.config import PAGE_SIZE, EngineConfig
from stille.engine.cuda_executor import CudaExecutor, padded_sizes
from stille.engine.executor import StepInput
from stille.errors import UnsupportedError
from stille.model import StilleConfig, StilleForCausalLM
from stille.model.draft import DraftConfig, DraftHead
from stille.model.registry import FFN_KINDS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

TINY = dict(
    vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=512, rope_parameters={"rope_theta": 100.0},
)  # fmt: skip
VARIANTS = {
    "qwen2": dict(attention_bias=True, tie_word_embeddings=True),
    "qwen3": dict(qk_norm=True, attention_bias=True, attention_output_bias=True),
    "yarn": dict(
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 128
        }
    ),
}  # fmt: skip


@FFN_KINDS.register("test-relu")
class ReluFFN(nn.Module):
    """A kind that the fused path does not know."""

    def __init__(self, config, layer):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(self.up_proj(x).relu())


def make_model(**options) -> StilleForCausalLM:
    torch.manual_seed(0)
    model = StilleForCausalLM(StilleConfig(**(TINY | options))).to(DEVICE).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)  # norms and biases too, and logits far apart
    return model


def make_executor(model, **options) -> CudaExecutor:
    settings: dict = dict(dtype="fp32", max_num_seqs=5, max_num_batched_tokens=256, max_model_len=400)
    config = EngineConfig(device=DEVICE, kv_cache_tokens=1600, **(settings | options))
    return CudaExecutor(model, config.resolve(model.config))


class Driver:
    """Feeds steps to an executor as a scheduler would, and knows what the logits must be."""

    def __init__(self, model, executor, count=3, length=300):
        random = np.random.default_rng(1)
        self.executor = executor
        self.tokens = random.integers(0, model.config.vocab_size, (count, length))
        # What the executor does to the weights must not matter: the truth is taken before and after.
        with torch.inference_mode():
            self.expected = model(torch.from_numpy(self.tokens).to(DEVICE)).logits.float()
        pages = random.permutation(np.arange(1, executor.num_pages))
        self.table = pages[: count * (length // PAGE_SIZE + 1)].reshape(count, -1).astype(np.int32)
        self.done = np.zeros(count, np.int32)

    def step(self, *work: tuple[int, int]) -> None:
        """Compute (sequence, tokens) pairs, decodes first, and check the last row's logits of each."""
        seqs = np.array([seq for seq, _ in work])
        lengths = np.array([n for _, n in work], np.int32)
        starts = self.done[seqs]
        ids = np.concatenate([self.tokens[s, a : a + n] for s, a, n in zip(seqs, starts, lengths, strict=True)])
        width = -(-int((starts + lengths).max()) // PAGE_SIZE)
        step = StepInput(
            seqs.astype(np.int32), starts, lengths, ids, self.table[seqs, :width], np.ones(len(seqs), bool),
            int((lengths == 1).sum()),
        )  # fmt: skip
        logits = self.executor.forward(step, torch.from_numpy(ids).to(DEVICE))
        self.done[seqs] += lengths
        assert logits.dtype == torch.float32
        assert logits.shape == (len(seqs), self.expected.shape[-1])
        expected = self.expected[seqs, self.done[seqs] - 1]
        torch.testing.assert_close(logits, expected, rtol=2e-4, atol=2e-4)


def run_through(driver: Driver) -> None:
    driver.step((0, PAGE_SIZE + 6))  # a prompt by itself, over a page's edge
    driver.step((0, 1), (1, 3))  # decode mixed with a chunk
    driver.step((0, 1), (1, 1))
    driver.step((1, 1), (2, 1), (0, 2))  # a prompt of one token; a chunk with history
    driver.step((2, 1), (0, 1), (1, 1))
    driver.step((1, 1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_step_gives_the_modules_logits(variant):
    model = make_model(**VARIANTS[variant])
    run_through(Driver(model, make_executor(model)))


def test_other_kinds_run_through_their_modules():
    model = make_model(ffn_kinds=["test-relu"], num_hidden_layers=1)
    run_through(Driver(model, make_executor(model)))


def test_decode_across_a_page_edge():
    model = make_model(num_hidden_layers=1)
    driver = Driver(model, make_executor(model), count=2)
    driver.step((0, PAGE_SIZE - 2), (1, 2 * PAGE_SIZE - 1))
    for _ in range(4):
        driver.step((1, 1), (0, 1))


def test_weights_are_fused_without_a_second_copy():
    model = make_model(attention_bias=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    executor = make_executor(model)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    attention = model.model.layers[0].self_attn
    stack = attention.q_proj.weight.untyped_storage().data_ptr()
    assert attention.k_proj.weight.untyped_storage().data_ptr() == stack
    assert executor.num_pages == 1600 // PAGE_SIZE + 1


def test_warmup_leaves_the_executor_as_it_was():
    model = make_model(num_hidden_layers=1)
    executor = make_executor(model)
    executor.warmup()
    run_through(Driver(model, executor))


@pytest.mark.parametrize("most", [1, 2, 5, 16, 100, 256, 1000])
def test_padded_sizes_cover_every_batch(most):
    sizes = padded_sizes(most)
    assert (sizes[0], sizes[-1]) == (1, most)
    assert sizes == sorted(set(sizes))


def test_what_it_cannot_run_is_named():
    with pytest.raises(UnsupportedError, match="float64"):
        make_executor(make_model().double())
    with pytest.raises(UnsupportedError, match="256"):
        make_executor(make_model(head_dim=320, num_hidden_layers=1))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="bf16 products and graphs need a GPU")
@pytest.mark.parametrize("graphs", [False, True])
def test_half_precision_with_and_without_graphs(graphs):
    model = make_model().bfloat16()
    executor = make_executor(model, dtype="bf16", cuda_graphs=graphs)
    executor.warmup()
    driver = Driver(model, executor)
    rows = np.arange(3, dtype=np.int32)
    ids = driver.tokens[:, 0].copy()
    step = StepInput(rows, np.zeros(3, np.int32), np.ones(3, np.int32), ids, driver.table[:, :1], np.ones(3, bool), 3)
    logits = executor.forward(step, torch.from_numpy(ids).to(DEVICE))
    expected = driver.expected[:, 0]
    assert (logits - expected).norm() / expected.norm() < 2e-2


@pytest.mark.parametrize("rows", [5, 17])  # some are attended together; these are too many for it
def test_rows_of_guesses_and_the_states_that_a_draft_head_reads(rows):
    """Successive positions of one sequence give the logits of each, and a head goes on from the last right one."""
    model = make_model(num_hidden_layers=3)
    head = DraftHead(DraftConfig.of(model.config, draft_vocab=40, inner_size=32, steps=3, feature_layers=(0, 2)))
    head.attach(model, "tiny").initialize(model)
    config = EngineConfig(
        device=DEVICE, kv_cache_tokens=1600, dtype="fp32", max_num_seqs=5, max_num_batched_tokens=256,
        max_model_len=400, max_draft_tokens=16,
    )  # fmt: skip
    executor = CudaExecutor(model, config.resolve(model.config), head)
    assert executor.drafter is not None
    states = {}
    for layer in (0, 2):
        model.model.layers[layer].register_forward_hook(lambda m, i, o, at=layer: states.__setitem__(at, o))
    tokens = np.random.default_rng(2).integers(0, 61, 80)
    with torch.inference_mode():
        expected = model(torch.from_numpy(tokens[None]).to(DEVICE)).logits[0].float()
    kept = {at: state[0] for at, state in states.items()}
    table = np.arange(1, 3, dtype=np.int32)[None]
    one, ids = np.ones(1, np.int32), torch.from_numpy(tokens).to(DEVICE)
    executor.forward(StepInput(one, 0 * one, 60 * one, tokens[:60], table[:, :1], one > 0, 0), ids[:60])
    place = 60  # crosses a page
    many = np.ones(rows, np.int32)
    starts = np.arange(place, place + rows, dtype=np.int32)
    step = StepInput(many, starts, many, tokens[place : place + rows], table.repeat(rows, 0), many > 0, rows)
    logits = executor.forward(step, ids[place : place + rows])
    torch.testing.assert_close(logits, expected[place : place + rows], rtol=1e-3, atol=1e-3)
    sampled = ids[place + 1 : place + rows + 1].clone()
    sampled[2] += 1  # so the guess in row 3 was wrong
    guesses, chances = executor.drafter.draft(
        sampled, ids[place : place + rows], np.array([0], np.int32), np.array([rows - 1], np.int32)
    )
    with torch.inference_mode():
        x = head.begin(head.features([kept[at][place + 2 : place + 3] for at in (0, 2)]))
        token = sampled[2:3]
        for guess, chance in zip(guesses[0], chances[0], strict=True):
            x, wanted = head.advance(x, token)
            token = head.draft_tokens_D[wanted.argmax(-1)]
            assert guess == token[0]
            assert float(chance) == pytest.approx(float(wanted.softmax(-1).max()), rel=1e-3)
