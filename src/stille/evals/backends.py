"""Models that answer: through the engine, and through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stille.evals.protocol import Generate

if TYPE_CHECKING:
    from stille.engine.llm import LLM


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
