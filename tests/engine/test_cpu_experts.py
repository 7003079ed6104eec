"""Experts on the CPU executor: equal to the modules on the same quantised numbers, each row at its own budget."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from stille.engine.config import EngineConfig
from stille.engine.cpu_executor import CpuExecutor
from stille.engine.executor import StepInput
from stille.engine.torch_executor import TorchExecutor
from stille.errors import ConfigError, UnsupportedError
from stille.kernels import grids
from stille.kernels.cpu import Target
from stille.model import StilleConfig, StilleForCausalLM
from stille.model.experts import ExpertsFFN, expert_layers
from stille.model.routing import score_quantiles

EXPERTS = {"num_experts": 8, "expert_size": 48, "shared_size": 64, "router_size": 32, "target_k": 3.0, "max_k": 8}
KINDS = {
    "threshold": {},
    "clamped": {"min_k": 2, "max_k": 4},
    "top_k": {"gate": "top_k", "target_k": 3},
    "one map, no shared, many": {"router_size": 0, "shared_size": 0, "num_experts": 20, "expert_size": 16, "max_k": 20},
    "sigmoid": {"weights": "sigmoid", "expert_size": 64},
    "normalised": {"gate": "top_k", "target_k": 2, "weights": "normalised", "scaling": 2.5},
}


def make_model(kinds=("experts", "dense", "experts"), **changes) -> StilleForCausalLM:
    torch.manual_seed(0)
    config = StilleConfig(
        vocab_size=200, hidden_size=96, intermediate_size=160, num_hidden_layers=len(kinds), num_attention_heads=6,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=2048, initializer_range=0.15,
        ffn_kinds=list(kinds), experts={**EXPERTS, **changes},
    )  # fmt: skip
    model = StilleForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for layer in expert_layers(model):
            gate = layer.gate
            gate.load_bias.normal_(std=0.05)
            gate.quantiles.copy_(score_quantiles(gate.scores(torch.randn(1000, 96))))
    return model


def quantise(x: torch.Tensor) -> torch.Tensor:
    x_groups = x.unflatten(-1, (-1, 32))
    scale = x_groups.abs().amax(-1, keepdim=True) / 127
    return ((x_groups / scale.clamp_min(1e-30)).round() * scale).flatten(-2)


def on_grid(weight: torch.Tensor, bits: int) -> torch.Tensor:
    return grids.dequantize(grids.quantize(weight, bits))


@torch.no_grad()
def on_quantised_numbers(model: StilleForCausalLM, bits: int) -> StilleForCausalLM:
    """The modules with the executor's arithmetic: weights on their grids, inputs of products on the activation grid."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            eight = isinstance(module, nn.Embedding) or name == "lm_head" or ".gate." in name
            module.weight.copy_(on_grid(module.weight, 8 if eight else bits))
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: quantise(inputs[0]))
        if isinstance(module, ExpertsFFN):
            gate_up, down = module.gate_up_proj, module.down_proj
            gate_up.copy_(on_grid(gate_up.flatten(0, 1), bits).view_as(gate_up))
            size = down.shape[-1]
            padded = nn.functional.pad(down, (0, -size % 32)).flatten(0, 1)
            down.copy_(on_grid(padded, bits).unflatten(0, down.shape[:2])[..., :size])
            module.gate.forward = lambda x, target=None, gate=module.gate: _gate(gate, x, target)
            module.forward = lambda x, ffn=module: _experts(ffn, x)
    return model


def _gate(gate, x_TC, target):
    """As `Gate.forward`, its linear maps read from the grid."""
    scores = gate.scores

    def on_grid_scores(x):
        if gate.down is None:
            return nn.functional.linear(quantise(x), gate.up.weight, gate.up.bias)
        hidden = nn.functional.silu(nn.functional.linear(quantise(x), gate.down.weight))
        return nn.functional.linear(quantise(hidden), gate.up.weight, gate.up.bias)

    gate.scores = on_grid_scores
    try:
        return type(gate).forward(gate, x_TC, target)
    finally:
        gate.scores = scores


def _experts(ffn, x):
    """Expert by expert, activations times weight on the grid."""
    routing = ffn.gate(x, ffn.budget)
    if ffn.log is not None:
        ffn.log.add(routing.mask_TE)
    y = torch.zeros_like(x) if ffn.shared is None else ffn.shared(x)
    for token, (experts, weights) in enumerate(zip(routing.expert_TK, routing.weight_TK, strict=True)):
        for e, weight in zip(experts.tolist(), weights, strict=True):
            if e < ffn.settings.num_experts:
                gate, up = (ffn.gate_up_proj[e] @ quantise(x[token])).chunk(2)
                inner = nn.functional.silu(gate) * up * weight
                padded = quantise(nn.functional.pad(inner, (0, -len(inner) % 32)))
                y[token] += ffn.down_proj[e] @ padded[: len(inner)]
    return y


def executor(model, bits=4, **changes):
    fields = {"kv_cache_tokens": 64 * 64, "max_model_len": 1024, "threads": 1, **changes}
    config = EngineConfig(dtype=f"int{bits}", device="cpu", **fields).resolve(model.config)
    return CpuExecutor(copy.deepcopy(model), config, Target(kv="f32"))


def make_step(parts, budgets) -> StepInput:
    """parts: (tokens computed now, first position, pages) of each sequence."""
    width = max(len(pages) for _, _, pages in parts)
    table = np.zeros((len(parts), width), np.int32)
    for row, (_, _, pages) in enumerate(parts):
        table[row, : len(pages)] = pages
    lengths = np.array([len(ids) for ids, _, _ in parts], np.int32)
    return StepInput(
        slots=np.arange(len(parts), dtype=np.int32), starts=np.array([start for _, start, _ in parts], np.int32),
        lengths=lengths, token_ids=np.array([i for ids, _, _ in parts for i in ids], np.int64), page_table=table,
        sample=np.ones(len(parts), bool), num_decodes=int((np.cumprod(lengths == 1)).sum()),
        budgets=np.array(budgets, np.float32),
    )  # fmt: skip


def forward(ex, parts, budgets) -> torch.Tensor:
    step = make_step(parts, budgets)
    return ex.forward(step, torch.from_numpy(step.token_ids)).clone()


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 200, count).tolist()


def relative_error(got, want) -> float:
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_logits_equal_the_modules_on_the_same_quantised_numbers(changes, bits):
    model = make_model(**changes)
    ours = executor(model, bits)
    config = EngineConfig(dtype="fp32", device="cpu", kv_cache_tokens=4096, max_model_len=1024).resolve(model.config)
    theirs = TorchExecutor(on_quantised_numbers(model, bits), config)
    experts = model.config.experts
    least, most = max(1, experts.get("min_k", 1)), experts["max_k"]
    short = [(tokens(3, i), 0, [1 + i]) for i in range(12)]
    budgets = np.linspace(least, most, 12).round(1 if experts.get("gate") != "top_k" else 0)
    # Where a number lies on the edge of a grid, or a score at its threshold, it may fall to the other side and disturb
    # what follows; nearly always the numbers are the same to float accuracy.
    got, want = forward(ours, short, budgets), forward(theirs, short, budgets)
    assert np.median([relative_error(a, b) for a, b in zip(got, want, strict=True)]) < 1e-5
    long = (tokens(150, 1), 0, [20, 21, 22])  # three tiles of rows
    got, want = forward(ours, [long], [most]), forward(theirs, [long], [most])
    assert relative_error(got[0], want[0]) < 0.05
    one = (tokens(1, 3), 150, [20, 21, 22])
    assert relative_error(forward(ours, [one], [least])[0], forward(theirs, [one], [least])[0]) < 0.05


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_does_not_depend_on_what_else_is_computed(threads):
    model = make_model()
    ex = executor(model, threads=threads)
    ids = [tokens(n, n) for n in (70, 5, 130)]
    budgets, pages = [1.5, 8, 3], [[1, 2], [3], [4, 5, 6]]
    together = forward(ex, [(a, 0, b) for a, b in zip(ids, pages, strict=True)], budgets)
    for i in range(3):
        assert torch.equal(forward(ex, [(ids[i], 0, pages[i])], [budgets[i]])[0], together[i])
    for start in range(0, 130, 37):  # in chunks
        chunk = ids[2][start : start + 37]
        last = forward(ex, [(chunk, start, pages[2])], [budgets[2]])
    assert torch.equal(last[0], together[2])
    for position, token in enumerate(ids[1]):  # row by row
        last = forward(ex, [([token], position, pages[1])], [budgets[1]])
    assert torch.equal(last[0], together[1])


@pytest.mark.timeout(120, method="thread")  # a signal does not reach compiled code that waits
def test_threads_that_come_late_count_as_the_others_did():
    """Layers whose rows run different numbers of experts, in short stages that threads often miss."""
    model = make_model(kinds=("experts",) * 12)
    alone, together = executor(model), executor(model, threads=2)
    for position, token in enumerate(tokens(300, 4)):
        step = [([token], position, [1, 2, 3, 4, 5])], [1.0 if position % 3 else 8.0]
        assert torch.equal(forward(alone, *step), forward(together, *step))


def test_more_rows_than_go_through_the_layers_at_once():
    model = make_model()
    ex = executor(model)
    a, b = tokens(300, 1), tokens(300, 2)
    alone = [forward(ex, [(a, 0, [1, 2, 3, 4, 5])], [2.0])[0], forward(ex, [(b, 0, [6, 7, 8, 9, 10])], [6.0])[0]]
    together = forward(ex, [(a, 0, [1, 2, 3, 4, 5]), (b, 0, [6, 7, 8, 9, 10])], [2.0, 6.0])
    assert torch.equal(torch.stack(alone), together)


def test_all_experts_are_the_dense_layer_that_was_split():
    """At a budget of E with unit weights, shared and routed experts add up to one dense FFN."""
    model = make_model(kinds=("experts", "experts"), shared_size=64, expert_size=32)
    dense = StilleForCausalLM(
        StilleConfig.from_dict(
            {**model.config.to_dict(), "ffn_kinds": None, "experts": None, "intermediate_size": 64 + 8 * 32}
        )
    ).eval()
    with torch.no_grad():
        for layer in expert_layers(model):
            layer.gate.scale.zero_()
        state = {name: value for name, value in model.state_dict().items() if ".mlp." not in name}
        for number, layer in enumerate(expert_layers(model)):
            gate, up = layer.gate_up_proj.chunk(2, dim=1)
            name = f"model.layers.{number}.mlp."
            state[name + "gate_proj.weight"] = torch.cat([layer.shared.gate_proj.weight, gate.flatten(0, 1)])
            state[name + "up_proj.weight"] = torch.cat([layer.shared.up_proj.weight, up.flatten(0, 1)])
            down = layer.down_proj.transpose(0, 1).flatten(1)
            state[name + "down_proj.weight"] = torch.cat([layer.shared.down_proj.weight, down], 1)
        dense.load_state_dict(state)
    prompt = (tokens(40, 5), 0, [1])
    got = forward(executor(model, 8), [prompt], [8.0])
    step = make_step([prompt], [8.0])
    want = executor(dense, 8).forward(dataclasses.replace(step, budgets=None), torch.from_numpy(step.token_ids))
    assert relative_error(got[0], want[0]) < 1e-3


def test_what_the_gates_do_is_counted():
    model = make_model()
    ex = executor(model)
    with torch.inference_mode():
        forward(ex, [(tokens(300, 1), 0, [1, 2, 3, 4, 5]), (tokens(1, 2), 0, [6])], [3.0, 8.0])
    loads = ex.routing.snapshot()
    assert [load.layer for load in loads] == [0, 2]
    for load in loads:
        assert load.tokens == 301
        assert load.spread[8] >= 1
        assert sum(load.load) == sum(k * count for k, count in enumerate(load.spread))
    for step in range(16):  # one in sixteen is counted
        assert ex.routing.snapshot()[0].tokens == 301, step
        forward(ex, [(tokens(9, 3), 0, [1])], [3.0])
    assert ex.routing.snapshot()[0].tokens == 310


def test_what_it_does_not_cover_is_refused():
    with pytest.raises(UnsupportedError, match="expert size 24"):
        executor(make_model(expert_size=24))
    with pytest.raises(UnsupportedError, match="64 experts"):
        executor(make_model(num_experts=64, expert_size=16, max_k=64))
    ex = executor(make_model())
    step = make_step([(tokens(3), 0, [1])], [3.0])
    place = step.starts, step.lengths, step.token_ids, step.page_table, step.sample
    with pytest.raises(ConfigError, match="needs budgets"):
        ex.decoder.forward(*place)
    rows = ex._budgets.rows(step.token_budgets())
    beyond, short = dict(budget_N=rows.budget_N + 1), dict(budget_N=rows.budget_N[1:])
    for wrong in (beyond, short, dict(bounds_B2=rows.bounds_B2 + 1)):
        with pytest.raises(ConfigError, match="budget"):
            ex.decoder.forward(*place, dataclasses.replace(rows, **wrong))
