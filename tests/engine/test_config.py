import dataclasses

import pytest
import torch

from stille.engine.config import EngineConfig, plan_pages
from stille.errors import ConfigError, UnsupportedError
from stille.kernels.hsa import HSAConfig
from stille.model import StilleConfig

SMALL = StilleConfig(num_hidden_layers=1, max_position_embeddings=1000)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dtype": "fp8"}, "auto, fp32, bf16, fp16, int8, int4"),
        ({"device": "tpu"}, "auto, cpu, cuda"),
        ({"attention": "linear"}, "full, hsa"),
        ({"hsa": HSAConfig()}, "choose attention 'hsa'"),
        ({"attention": "hsa", "hsa": 4096}, "HSAConfig"),
        ({"max_model_len": 1}, "at least 2"),
        ({"max_num_seqs": 0}, "1..4096"),
        ({"max_num_seqs": True}, "integer"),
        ({"max_num_batched_tokens": 2.5}, "integer"),
        ({"max_num_seqs": 8, "max_num_batched_tokens": 4}, "decodes one token per step"),
        ({"kv_cache_tokens": 64, "max_model_len": 65}, "would not fit"),
        ({"gpu_memory_utilization": 1.5}, "0.05..1"),
        ({"prefix_caching": "yes"}, "true or false"),
        ({"max_queue": 0}, "at least 1"),
        ({"threads": 0}, "1..1024"),
        ({"async_depth": 2}, "0..1"),
        ({"seed": -1}, "0.."),
        ({"model": ""}, "model must be"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_would_be_right(settings, says):
    with pytest.raises(ConfigError, match=says):
        EngineConfig(**settings)


def test_resolving_fills_in_everything_that_was_left_open():
    resolved = EngineConfig(device="cpu").resolve(SMALL)
    assert resolved.dtype == "int4"
    assert resolved.max_model_len == 1000
    assert resolved.max_num_seqs == 32
    assert resolved.max_queue == 128
    assert resolved.max_num_batched_tokens == 512
    assert resolved.resolve(SMALL) == resolved
    assert resolved.load_dtype is torch.float32
    assert dataclasses.replace(resolved, dtype="bf16").load_dtype is torch.bfloat16


def test_experts_are_packed_to_eight_bits_unless_told_otherwise():
    split = StilleConfig(
        num_hidden_layers=1, max_position_embeddings=1000, ffn_kinds=["experts"],
        experts={"num_experts": 16, "expert_size": 4, "shared_size": 16},
    )  # fmt: skip
    assert EngineConfig(device="cpu").resolve(split).dtype == "int8"
    assert EngineConfig(device="cpu", dtype="int4").resolve(split).dtype == "int4"


def test_a_small_token_budget_limits_the_number_of_sequences():
    assert EngineConfig(device="cpu", max_num_batched_tokens=5).resolve(SMALL).max_num_seqs == 5


def test_more_positions_than_the_model_has_are_refused():
    with pytest.raises(ConfigError, match="1000"):
        EngineConfig(max_model_len=1001, device="cpu").resolve(SMALL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_without_a_card_is_refused():
    with pytest.raises(UnsupportedError, match="CUDA"):
        EngineConfig(device="cuda").resolve(SMALL)


def test_pages_follow_the_tokens_asked_for_or_the_memory():
    cpu = torch.device("cpu")
    asked = EngineConfig(device="cpu", kv_cache_tokens=65).resolve(SMALL)
    assert plan_pages(asked, 1 << 20, cpu) == 3  # two pages and the scratch page
    by_memory = EngineConfig(device="cpu").resolve(SMALL)
    assert plan_pages(by_memory, 1 << 20, cpu) == 385  # 384 MiB
    assert plan_pages(by_memory, 1 << 40, cpu) == 17  # at least one sequence of full length
