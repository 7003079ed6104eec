"""Models that answer: through the engine, and through transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stille.errors import UnsupportedError
from stille.evals.protocol import Generate

if TYPE_CHECKING:
    from stille.engine.llm import LLM
    from stille.evals.settings import Setting


def engine_generate(llm: LLM) -> Generate:
    """Answers by an engine, many prompts at a time, greedy."""
    from stille.engine.sampling_params import SamplingParams

    def generate(prompts: Sequence[list[int]], max_new_tokens: Sequence[int]) -> list[str]:
        params = [SamplingParams(temperature=0, max_tokens=most) for most in max_new_tokens]
        return [result.outputs[0].text for result in llm.generate(list(prompts), params, progress=False)]

    return generate


def transformers_generate(model: Any, tokenizer: Any) -> Generate:
    """Answers by a transformers model, one prompt at a time (no padding to account for), greedy.

    Args:
        model: a causal language model; its attention is the setting (`attn_implementation="hsa"` or `"sdpa"`).
    """
    import torch

    def generate(prompts: Sequence[list[int]], max_new_tokens: Sequence[int]) -> list[str]:
        texts = []
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        for prompt, most in zip(prompts, max_new_tokens, strict=True):
            ids_1T = torch.tensor([prompt], device=model.device)
            out_1T = model.generate(
                ids_1T,
                attention_mask=torch.ones_like(ids_1T),
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=pad,
                # A checkpoint's own sampling settings would only raise warnings about being ignored.
                temperature=None,
                top_p=None,
                top_k=None,
            )
            texts.append(tokenizer.decode(out_1T[0, len(prompt) :].tolist(), skip_special_tokens=True))
        return texts

    return generate


def load_for_transformers(path: str | Path, setting: Setting, dtype: str = "auto", device: str = "cpu") -> Any:
    """A model that transformers runs, its attention being the setting.

    Args:
        path: a folder (loaded by transformers' own classes) or a .gguf file (by ours).
        dtype: fp32, bf16, fp16, or auto: bf16 on CUDA, fp32 on CPU.

    Raises:
        UnsupportedError: a dtype that transformers does not run here.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from stille.model import load_model  # registers "hsa" with transformers

    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    kinds["auto"] = torch.bfloat16 if device == "cuda" else torch.float32
    if dtype not in kinds:
        raise UnsupportedError(f"dtype {dtype!r} runs in the engine only; with transformers use {', '.join(kinds)}")
    path = Path(path)
    if path.is_dir():
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=kinds[dtype], local_files_only=True)
        model.to(device)
    else:
        model = load_model(path, dtype=kinds[dtype], device=device, progress=False).model
    model.set_attn_implementation("hsa" if setting.hsa is not None else "sdpa")
    if setting.hsa is not None:
        model.config.hsa = dataclasses.asdict(setting.hsa)
    return model.eval()
