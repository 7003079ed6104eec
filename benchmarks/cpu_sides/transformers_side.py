"""The side of transformers: its own LlamaForCausalLM in fp32, called directly, so that `generate` costs it nothing.

python transformers_side.py '{"path": "model.gguf", "threads": 2}'
"""

import json
import sys

import torch
import transformers
from side import pin, serve
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from stille.model.load import load_model


class TransformersSide:
    def __init__(self, path):
        ours = load_model(path, dtype=torch.float32, progress=False).model
        config = ours.config
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                num_key_value_heads=config.num_key_value_heads,
                head_dim=config.head_dim,
                max_position_embeddings=config.max_position_embeddings,
                rms_norm_eps=config.rms_norm_eps,
                rope_parameters=config.rope_parameters,
                tie_word_embeddings=config.tie_word_embeddings,
                attn_implementation="sdpa",
            )
        ).eval()
        self.model.load_state_dict(ours.state_dict(), assign=True)
        self.model.tie_weights()
        self.prefill([1] * 64)  # warm-up

    def _forward(self, ids, cache):
        out = self.model(input_ids=torch.tensor([ids]), past_key_values=cache, logits_to_keep=1)
        return int(out.logits[0, -1].argmax())

    @torch.inference_mode()
    def prefill(self, ids):
        return self._forward(ids, DynamicCache(config=self.model.config))

    @torch.inference_mode()
    def decode(self, ids, new, clock):
        cache = DynamicCache(config=self.model.config)
        out = [self._forward(ids, cache)]
        with clock.running():
            while len(out) < new:
                out.append(self._forward(out[-1:], cache))
        return out

    @torch.inference_mode()
    def score(self, ids):
        logprobs_NV = self.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        chosen = logprobs_NV[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        return chosen.tolist(), logprobs_NV.argmax(-1).tolist()


def main():
    settings = json.loads(sys.argv[1])
    pin(settings["threads"])
    torch.set_num_threads(settings["threads"])
    side = TransformersSide(settings["path"])
    serve(side, {"version": f"transformers {transformers.__version__}, torch {torch.__version__}"})


if __name__ == "__main__":
    main()
