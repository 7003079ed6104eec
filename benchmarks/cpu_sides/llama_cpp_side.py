"""llama.cpp's side: its C API through llama-cpp-python, so that no Python runs inside a step but the call itself.

python llama_cpp_side.py '{"path": "model.gguf", "threads": 2, "context": 2304, "batch": 512, "flash": true}'
python llama_cpp_side.py '{"quantize": ["from.gguf", "to.gguf"], "type": "Q4_0", "pure": false}'
"""

import ctypes
import json
import os
import sys

import llama_cpp as lc
import numpy as np
from side import pin, serve

SILENT = lc.llama_log_callback(lambda level, text, data: None)


class LlamaCppSide:
    def __init__(self, path, threads, context, batch, flash):
        model_params = lc.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = lc.llama_model_load_from_file(os.fsencode(path), model_params)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        params = lc.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = max(batch, 2048)
        params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = lc.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else lc.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        self.context = lc.llama_init_from_model(self.model, params)
        self.vocab_size = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self.model))
        self.greedy = lc.llama_sampler_init_greedy()
        self.prefill([1] * 64)  # warm-up

    def _decode(self, ids):
        array = (lc.llama_token * len(ids))(*ids)
        if lc.llama_decode(self.context, lc.llama_batch_get_one(array, len(ids))) != 0:
            raise SystemExit("llama_decode failed")

    def _clear(self):
        lc.llama_memory_clear(lc.llama_get_memory(self.context), True)

    def prefill(self, ids):
        self._clear()
        self._decode(ids)
        return lc.llama_sampler_sample(self.greedy, self.context, -1)

    def decode(self, ids, new, clock):
        out = [self.prefill(ids)]
        with clock.running():
            while len(out) < new:
                self._decode(out[-1:])
                out.append(lc.llama_sampler_sample(self.greedy, self.context, -1))
        return out

    def score(self, ids):
        """The prompt in one batch, as llama.cpp's own perplexity tool does it."""
        self._clear()
        batch = lc.llama_batch_init(len(ids), 0, 1)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
        batch.n_tokens = len(ids)
        if lc.llama_decode(self.context, batch) != 0:
            raise SystemExit("llama_decode failed")
        pointer = lc.llama_get_logits(self.context)
        logits_NV = np.ctypeslib.as_array(pointer, shape=(len(ids), self.vocab_size)).astype(np.float64)
        lc.llama_batch_free(batch)
        logits_NV -= logits_NV.max(axis=1, keepdims=True)
        logprobs_NV = logits_NV - np.log(np.exp(logits_NV).sum(axis=1, keepdims=True))
        chosen = logprobs_NV[np.arange(len(ids) - 1), ids[1:]]
        return chosen.tolist(), logits_NV.argmax(axis=1).tolist()


def quantize(source, target, type_name, pure):
    params = lc.llama_model_quantize_default_params()
    params.ftype = getattr(lc, f"LLAMA_FTYPE_MOSTLY_{type_name}")
    params.allow_requantize = True
    params.pure = pure
    partial = f"{target}.partial"
    if lc.llama_model_quantize(os.fsencode(source), os.fsencode(partial), ctypes.byref(params)) != 0:
        raise SystemExit(f"llama.cpp cannot requantise {source}")
    os.replace(partial, target)


def main():
    settings = json.loads(sys.argv[1])
    lc.llama_log_set(SILENT, None)
    lc.llama_backend_init()
    if "quantize" in settings:
        quantize(*settings["quantize"], settings["type"], settings["pure"])
        return
    pin(settings["threads"])
    side = LlamaCppSide(**settings)
    serve(side, {"version": lc.__version__, "system": lc.llama_print_system_info().decode().strip()})


if __name__ == "__main__":
    main()
