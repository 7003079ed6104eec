"""Merge the adapter into the base and save a model folder that `stille.LLM` and transformers read.

PYTHONPATH=benchmarks python -m probe.export --adapter benchmarks/probe/adapter --out probe-16k
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from probe.network import PROJECTIONS, merge, probe_config, read_adapter
from stille.model.load import LoadedModel, load_model


@torch.no_grad()
def merged_model(source: str, adapter: Path, dtype: torch.dtype = torch.bfloat16) -> LoadedModel:
    """The probe model: base plus adapter, as trained.

    Args:
        source: the base, as for `load_model`.
        adapter: folder with `adapter.safetensors` and `adapter.json`.
        dtype: of the weights; they were trained as bf16.
    """
    settings = json.loads((adapter / "adapter.json").read_text(encoding="utf-8"))
    loaded = load_model(source, progress=False)
    tensors = read_adapter(adapter)
    model = loaded.model
    config = probe_config(model.config, settings["rope_theta"], settings["context"])
    for index, layer in enumerate(model.model.layers):
        for name, block in PROJECTIONS.items():
            prefix = f"base_model.model.model.layers.{index}.{block}.{name}"
            A, B = (tensors[f"{prefix}.lora_{x}.weight"].float() for x in "AB")
            weight = getattr(getattr(layer, block), name).weight
            weight.copy_(merge(weight, A, B, torch.bfloat16))
    probe: Any = type(model)(config)
    probe.load_state_dict(model.state_dict())
    probe.generation_config = model.generation_config
    loaded.tokenizer.model_max_length = settings["context"]
    probe.to(dtype=dtype)
    return LoadedModel(probe.eval(), loaded.tokenizer, loaded.path, f"{source} + {adapter.name}", loaded.eos_token_ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="stille-135m", help="the base: a name, folder or .gguf file")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    probe = merged_model(options.model, options.adapter)
    probe.model.save_pretrained(options.out)
    probe.tokenizer.save_pretrained(options.out)
    print(f"saved to {options.out}")


if __name__ == "__main__":
    main()
