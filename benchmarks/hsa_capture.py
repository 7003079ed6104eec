"""Queries, keys and values after RoPE of a real model on real text, for the other HSA benchmarks.

    python benchmarks/hsa_capture.py --length 8192            # capture, say how well the model predicts the text
    python benchmarks/hsa_capture.py --model FOLDER_OR_GGUF --length 32768

The model is SmolLM2-135M (the packaged GGUF), whose context is 8,192 tokens, unless `--model` names another. Longer
texts are reached by YaRN (B. Peng et al., 2309.00071) without training, so beyond its context the model is worse than a
trained one and its heads are more diffuse; the perplexity of the last tokens, which is printed and recorded, says how
much. Texts: the sources of Python's standard library, and their docstrings (prose). Both depend on the Python version.
"""

import argparse
import math
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import PreTrainedTokenizerBase

from stille.model import StilleConfig, StilleForCausalLM
from stille.model.convert.text import docstrings
from stille.model.load import load_model
from stille.model.rope import RotaryEmbedding

DEFAULT_MODEL = "stille-135m"
LAYERS = (0, 3, 7, 11, 15, 19, 23, 27, 29)
TEXTS = ("source", "docstrings")
JUDGED = 2048  # last tokens, over which the perplexity is taken
CHARACTERS_PER_TOKEN = 6  # more than any of the texts needs


@dataclass
class Captured:
    """What chosen layers attended with, in the model's dtype.

    Attributes:
        q_HND, k_KND, v_KND: by layer.
        scale: factor of the scores.
        text: name of the text.
        perplexity: of the last `JUDGED` tokens.
        stretch: factor of YaRN; 1 within the model's own context.
    """

    q_HND: dict[int, Tensor]
    k_KND: dict[int, Tensor]
    v_KND: dict[int, Tensor]
    scale: float
    text: str
    perplexity: float
    stretch: float

    @property
    def length(self) -> int:
        return next(iter(self.k_KND.values())).shape[1]


class _Recorder:
    """An attention backend for one sequence: dense, and it keeps what the chosen layers were given."""

    def __init__(self, layers: tuple[int, ...]):
        self.layers = layers
        self.q: dict[int, Tensor] = {}
        self.k: dict[int, Tensor] = {}
        self.v: dict[int, Tensor] = {}

    def attend(self, layer: int, q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, scale: float) -> Tensor:
        q, k, v = (x.transpose(0, 1).contiguous() for x in (q_NHD, k_NKD, v_NKD))
        if layer in self.layers:
            self.q[layer], self.k[layer], self.v[layer] = q, k, v
        groups = len(q) // len(k)  # repeated: not every backend knows grouped heads, and what is left needs N^2 memory
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        out = scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=scale)
        return out[0].transpose(0, 1)


@torch.inference_mode()
def capture(model: StilleForCausalLM, ids_N: Tensor, text: str, layers: tuple[int, ...] = LAYERS) -> Captured:
    """Run the model over one text and keep what `layers` attended with; the model's own RoPE is restored."""
    layers = tuple(i for i in layers if i < model.config.num_hidden_layers)
    recorder, stretch, own = _Recorder(layers), stretch_of(model.config, len(ids_N)), model.model.rotary
    if stretch > 1:
        model.model.rotary = RotaryEmbedding(stretched(model.config, stretch))
    try:
        model.model.rope_table(len(ids_N))
        hidden = model.forward_tokens(ids_N, torch.arange(len(ids_N), device=ids_N.device), recorder)
    finally:
        model.model.rotary = own
    last = min(JUDGED, len(ids_N) - 1)
    logits = model.compute_logits(hidden[-last - 1 : -1]).float()
    perplexity = math.exp(float(cross_entropy(logits, ids_N[-last:])))
    scale = model.config.head_dim**-0.5
    return Captured(recorder.q, recorder.k, recorder.v, scale, text, perplexity, stretch)


def stretch_of(config: StilleConfig, length: int) -> float:
    """By how much YaRN has to stretch the model's context to reach a length."""
    return max(1.0, length / config.max_position_embeddings)


def stretched(config: StilleConfig, factor: float) -> StilleConfig:
    """The same configuration with YaRN by a factor over its own context."""
    values = config.to_dict()
    values["rope_parameters"] = {
        "rope_type": "yarn",
        "rope_theta": config.rope_parameters["rope_theta"],
        "factor": factor,
        "original_max_position_embeddings": config.max_position_embeddings,
    }
    values["max_position_embeddings"] = math.ceil(config.max_position_embeddings * factor)
    return StilleConfig.from_dict(values)


def read_tokens(tokenizer: PreTrainedTokenizerBase, text: str, count: int) -> list[int]:
    """The first `count` tokens of a text of `TEXTS`."""
    ids = tokenizer(read_text(text, count * CHARACTERS_PER_TOKEN)).input_ids[:count]
    if len(ids) < count:
        raise SystemExit(f"the text {text!r} has only {len(ids)} of the {count} tokens that are needed")
    return ids


def read_text(text: str, characters: int) -> str:
    """The beginning of the standard library's sources, or of its docstrings, file after file by name."""
    folder, parts, length = Path(sysconfig.get_paths()["stdlib"]), [], 0
    for file in sorted(folder.glob("*.py")):
        content = file.read_text(encoding="utf-8", errors="replace")
        parts.append(f"# {file.name}\n{content}" if text == "source" else docstrings(file.stem, content))
        length += len(parts[-1])
        if length >= characters:
            break
    return "\n\n".join(parts)[:characters]


def load(source: str, device: str, dtype: torch.dtype) -> tuple[StilleForCausalLM, PreTrainedTokenizerBase]:
    loaded = load_model(source, dtype=dtype, device=device, progress=False)
    return loaded.model, loaded.tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every script that captures takes."""
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name, folder or .gguf file (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))


def dtype_of(device: str) -> torch.dtype:
    return torch.bfloat16 if device.startswith("cuda") else torch.float32


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--save", type=Path, help="a torch file for what was captured, one text only")
    chosen = parser.parse_args()
    model, tokenizer = load(chosen.model, chosen.device, dtype_of(chosen.device))
    for text in chosen.texts:
        ids = torch.tensor(read_tokens(tokenizer, text, chosen.length), device=chosen.device)
        got = capture(model, ids, text)
        layer = next(iter(got.q_HND))
        print(
            f"{text}: {got.length} tokens, YaRN x{got.stretch:g}, perplexity {got.perplexity:.2f}; layers "
            f"{list(got.q_HND)}, q {tuple(got.q_HND[layer].shape)}, k {tuple(got.k_KND[layer].shape)}"
        )
        if chosen.save:
            torch.save(vars(got), chosen.save)


if __name__ == "__main__":
    main()
