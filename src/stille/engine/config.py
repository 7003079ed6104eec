"""Settings of one engine, checked when they are made and completed once the model is known."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from stille.engine.hsa import PACKED_BUDGET, PromptRule, check_heads
from stille.errors import ConfigError, UnsupportedError
from stille.kernels.hsa import HSAConfig

PAGE_SIZE = 64
"""Tokens per KV-cache page."""

DTYPES = ("auto", "fp32", "bf16", "fp16", "int8", "int4")
DEVICES = ("auto", "cpu", "cuda")
ATTENTION = ("full", "hsa")

_NO_HEAD = ("auto", "none")  # values of `draft` that name none
_CPU_CACHE_BYTES = 384 << 20
_CPU_CACHE_TOKENS_AT_LEAST = 8192


@dataclass(frozen=True)
class EngineConfig:
    """Everything that shapes an engine. `None` means: choose when the model and the machine are known.

    Attributes:
        model: a name known to `stille.model.store`, a Hugging Face repository id, a folder or a .gguf file.
        dtype: weights and arithmetic. auto = bf16 on CUDA; on CPU int4, or int8 for models with experts, whose weights
            lose too much in 4 bits; fp32 is the exactness mode.
        device: auto takes CUDA if there is one.
        max_model_len: most tokens (prompt and answer) of one sequence; None = what the model and the cache allow.
        max_num_seqs: most sequences computed together; None = 256 on CUDA, 32 on CPU.
        max_num_batched_tokens: most tokens computed in one step; None = 8192 on CUDA, 512 on CPU.
        kv_cache_tokens: size of the KV cache; None = by memory (see `memory.plan_pages`).
        gpu_memory_utilization: share of the card's memory that weights, workspace and cache may fill.
        max_queue: most requests waiting for admission; None = 4 x max_num_seqs. More are refused (QueueFullError).
        prefix_caching: reuse the pages of equal prompt beginnings.
        threads: CPU threads of torch and of the CPU kernels; None leaves torch's own choice.
        seed: of requests that bring none; None = from the operating system.
        attention: "full", or "hsa": hierarchical sparse attention, which reads a budget of keys in long contexts.
        hsa: its settings; None = `HSAConfig()`, with int8 and int4 a budget of 4,096. Only with attention "hsa".
        cuda_graphs: capture decode steps as CUDA graphs.
        max_draft_tokens: guesses of one sequence that a step may check (speculative decoding); 0 = never guess. It
            changes no answer, and is left alone where it is not expected to make them faster. None = 16 on CPU, 0 on
            CUDA unless a draft head is named: there the host's part of it still costs more than most texts gain.
        draft: a draft head (`stille train draft`): a folder, or the name of a model that comes with one. auto = the
            model's own if it has one, none = guess without. On a CPU only in fp32.
        async_depth: steps in flight before the first is read; None = the executor's own (0 on CPU, 1 on CUDA).

    Raises:
        ConfigError: a value is of the wrong type, out of range, unknown or contradicts another.
    """

    model: str = "stille-135m"
    dtype: str = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    kv_cache_tokens: int | None = None
    gpu_memory_utilization: float = 0.85
    max_queue: int | None = None
    prefix_caching: bool = True
    threads: int | None = None
    seed: int | None = None
    attention: str = "full"
    hsa: HSAConfig | None = None
    cuda_graphs: bool = True
    max_draft_tokens: int | None = None
    draft: str = "auto"
    async_depth: int | None = None

    def __post_init__(self) -> None:
        if not self.model or not isinstance(self.model, str):
            raise ConfigError(f"model must be a name, a folder or a .gguf file, got {self.model!r}")
        if not self.draft or not isinstance(self.draft, str):
            raise ConfigError(f"draft must be auto, none, a folder or the name of a model, got {self.draft!r}")
        if self.max_draft_tokens == 0 and self.draft not in _NO_HEAD:
            raise ConfigError(f"max_draft_tokens is 0, so the draft head {self.draft!r} has no use: leave one out")
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("device", self.device, DEVICES)
        _one_of("attention", self.attention, ATTENTION)
        _integer("max_model_len", self.max_model_len, low=2)
        _integer("max_num_seqs", self.max_num_seqs, low=1, high=4096)
        _integer("max_num_batched_tokens", self.max_num_batched_tokens, low=1)
        _integer("kv_cache_tokens", self.kv_cache_tokens, low=1)
        _integer("max_queue", self.max_queue, low=1)
        _integer("threads", self.threads, low=1, high=1024)
        _integer("seed", self.seed, low=0, high=2**63 - 1)
        _integer("max_draft_tokens", self.max_draft_tokens, low=0, high=64)
        _integer("async_depth", self.async_depth, low=0, high=1)
        if self.hsa is not None and not isinstance(self.hsa, HSAConfig):
            raise ConfigError(f"hsa must be an HSAConfig, got {self.hsa!r}")
        if self.hsa is not None and self.attention != "hsa":
            raise ConfigError(f"hsa settings were given, but attention is {self.attention!r}: choose attention 'hsa'")
        for name in ("prefix_caching", "cuda_graphs"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {getattr(self, name)!r}")
        share = self.gpu_memory_utilization
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0.05 <= share <= 1:
            raise ConfigError(f"gpu_memory_utilization must lie in 0.05..1, got {share!r}")
        if self.max_num_batched_tokens and self.max_num_seqs and self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): every running sequence decodes one token per step"
            )
        if self.kv_cache_tokens and self.max_model_len and page_ceil(self.kv_cache_tokens) < self.max_model_len:
            raise ConfigError(
                f"kv_cache_tokens ({self.kv_cache_tokens}) is smaller than max_model_len ({self.max_model_len}): "
                "one sequence of full length would not fit; raise the first or lower the second"
            )

    def resolve(self, model_config: Any) -> EngineConfig:
        """The same settings with device, dtype and the limits filled in for this model and machine.

        `max_model_len` is filled with the model's own limit; the engine lowers it to the cache's size if that is
        smaller. `kv_cache_tokens` stays None on CUDA (memory is measured after the weights are loaded).

        Args:
            model_config: a `StilleConfig` (positions and, for attention "hsa", shapes of heads are read).

        Raises:
            ConfigError: max_model_len is beyond what the model's positions allow, or max_num_batched_tokens leaves no
                room for a prompt chunk of the size that attention "hsa" needs.
            UnsupportedError: CUDA asked for and absent, a dtype that the device has no kernels for, or heads that
                attention "hsa" does not take.
        """
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        elif device == "cuda" and not torch.cuda.is_available():
            raise UnsupportedError("device 'cuda' was asked for, but torch sees no CUDA device; use device 'cpu'")
        dtype = self.dtype
        if dtype == "auto":
            packed = "int8" if getattr(model_config, "experts", None) else "int4"
            dtype = "bf16" if device == "cuda" else packed
        elif device == "cuda" and dtype in ("int8", "int4"):
            raise UnsupportedError(f"dtype {dtype!r} runs on CPU only so far; on CUDA use bf16, fp16 or fp32")

        limit = int(model_config.max_position_embeddings)
        if self.max_model_len is not None and self.max_model_len > limit:
            raise ConfigError(
                f"max_model_len {self.max_model_len} exceeds the model's {limit} positions (max_position_embeddings)"
            )
        if self.max_model_len is None and self.kv_cache_tokens is not None:
            limit = min(limit, page_ceil(self.kv_cache_tokens))
        length = self.max_model_len or limit
        hsa = None
        if self.attention == "hsa":
            hsa = self.hsa or (HSAConfig(budget=PACKED_BUDGET) if dtype in ("int8", "int4") else HSAConfig())
            heads = int(model_config.num_attention_heads)
            check_heads(int(model_config.head_dim), heads // int(model_config.num_key_value_heads))
        # Prompts are cut where tiles of sparse attention end, so a chunk beside all decoding rows needs a whole one.
        chunk = 0 if hsa is None else PromptRule.of(hsa).step(length)
        seqs = self.max_num_seqs or (256 if device == "cuda" else 32)
        if self.max_num_seqs is None and self.max_num_batched_tokens is not None:
            seqs = max(1, min(seqs, self.max_num_batched_tokens - chunk))
        tokens = self.max_num_batched_tokens or max(seqs + chunk, 8192 if device == "cuda" else 512)
        if tokens < seqs + chunk:
            raise ConfigError(
                f"max_num_batched_tokens is {tokens}: attention 'hsa' needs at least {seqs + chunk} here, {chunk} for "
                f"a piece of a prompt and one for each of {seqs} sequences (max_num_seqs)"
            )
        return dataclasses.replace(
            self,
            device=device,
            dtype=dtype,
            max_model_len=length,
            max_num_seqs=seqs,
            max_num_batched_tokens=tokens,
            hsa=hsa,
            max_draft_tokens=self._draft_tokens(device),
            max_queue=4 * seqs if self.max_queue is None else self.max_queue,
        )

    def _draft_tokens(self, device: str) -> int:
        if self.max_draft_tokens is not None:
            return self.max_draft_tokens
        return 0 if device == "cuda" and self.draft in _NO_HEAD else 16

    @property
    def max_decode_rows(self) -> int:
        """Rows of the largest decode step (of a resolved config): every sequence, or one with all its guesses."""
        return max(self.max_num_seqs or 1, 1 + self.max_draft_tokens if self.max_draft_tokens else 1)

    @property
    def load_dtype(self) -> torch.dtype:
        """Dtype to load the weights in (of a resolved config): what is computed in, fp32 where weights are packed."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.dtype, torch.float32)


def plan_pages(config: EngineConfig, page_bytes: int, device: torch.device) -> int:
    """How many KV pages an executor should allocate, the scratch page 0 included.

    `kv_cache_tokens` wins if set. Otherwise, on CPU: 384 MiB worth, but at least 8,192 tokens or one sequence of
    max_model_len if that is shorter or was asked for; on CUDA: what `gpu_memory_utilization` leaves after everything
    allocated so far, so call this once the weights and the largest workspace exist.

    Args:
        config: a resolved config.
        page_bytes: bytes of one page over all layers, K and V together.

    Raises:
        ConfigError: the memory allowed does not hold even one page.
    """
    assert config.max_model_len is not None, "plan_pages needs a resolved config"
    if config.kv_cache_tokens is not None:
        return page_ceil(config.kv_cache_tokens) // PAGE_SIZE + 1
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        allowed = int(total * config.gpu_memory_utilization) - (total - free - cached)
        # More pages than every slot could fill at full length are of use to the prefix cache only: stop at twice that.
        most = 2 * (config.max_num_seqs or 1) * (page_ceil(config.max_model_len) // PAGE_SIZE)
        pages = min(allowed // page_bytes, most)
    else:
        tokens = max(_CPU_CACHE_BYTES // page_bytes * PAGE_SIZE, min(config.max_model_len, _CPU_CACHE_TOKENS_AT_LEAST))
        pages = page_ceil(tokens) // PAGE_SIZE
    if pages < 1:
        raise ConfigError(
            f"no memory is left for the KV cache (one page takes {page_bytes} bytes): raise gpu_memory_utilization "
            f"(now {config.gpu_memory_utilization}) or set kv_cache_tokens"
        )
    return pages + 1


def page_ceil(tokens: int) -> int:
    """`tokens` rounded up to whole pages."""
    return -(-tokens // PAGE_SIZE) * PAGE_SIZE


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} {value!r} is unknown; choose one of: {', '.join(known)}")


def _integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name} must be an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        span = f"at least {low}" if high is None else f"{low}..{high}"
        raise ConfigError(f"{name} must be {span}, got {value}")
