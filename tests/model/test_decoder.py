"""The decoder's two entrances agree, and transformers' machinery works on it."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, StaticCache

from stille.model import StilleConfig, StilleForCausalLM


class DenseBackend:
    """Several sequences in one flat batch, attended one by one over everything they have seen."""

    def __init__(self, layers: int, sequences: int):
        self.keys = [[[] for _ in range(sequences)] for _ in range(layers)]
        self.values = [[[] for _ in range(sequences)] for _ in range(layers)]
        self.lengths: list[int] = []  # new tokens of each sequence in this batch

    def attend(self, layer, q_NHD, k_NKD, v_NKD, scale):
        outputs = []
        for sequence, (q, k, v) in enumerate(zip(*(x.split(self.lengths) for x in (q_NHD, k_NKD, v_NKD)), strict=True)):
            keys, values = self.keys[layer][sequence], self.values[layer][sequence]
            keys.append(k)
            values.append(v)
            k_SKD, v_SKD = torch.cat(keys), torch.cat(values)
            new, seen = len(q), len(k_SKD)
            causal = torch.ones(new, seen, dtype=torch.bool).tril(seen - new)
            o = F.scaled_dot_product_attention(
                *(x.transpose(0, 1)[None] for x in (q, k_SKD, v_SKD)), attn_mask=causal, scale=scale, enable_gqa=True
            )
            outputs.append(o[0].transpose(0, 1))
        return torch.cat(outputs)


@torch.no_grad()
def test_flat_tokens_equal_forward(tiny_model, ids):
    """Two sequences, in chunks that differ in length, with a third one joining late."""
    rows = [ids[0], ids[1, :50], ids[1, 20:]]
    backend = DenseBackend(tiny_model.config.num_hidden_layers, 3)
    chunks = [(30, 1, 0), (1, 48, 10), (39, 1, 40)]  # new tokens of each sequence, step by step
    done, logits = [0, 0, 0], [[], [], []]
    for lengths in chunks:
        backend.lengths = list(lengths)
        spans = [slice(start, start + new) for start, new in zip(done, lengths, strict=True)]
        flat = torch.cat([row[span] for row, span in zip(rows, spans, strict=True)])
        positions = torch.cat([torch.arange(span.start, span.stop) for span in spans])
        hidden = tiny_model.forward_tokens(flat, positions, backend)
        assert hidden.shape == (sum(lengths), tiny_model.config.hidden_size)
        for sequence, part in enumerate(tiny_model.compute_logits(hidden).split(list(lengths))):
            logits[sequence].append(part)
        done = [span.stop for span in spans]
    for row, parts in zip(rows, logits, strict=True):
        torch.testing.assert_close(torch.cat(parts), tiny_model(row[None]).logits[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_implementations_agree(tiny_model, ids, dtype):
    tiny_model.to(dtype)
    sdpa = tiny_model(ids).logits
    tiny_model.set_attn_implementation("eager")
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.3}
    torch.testing.assert_close(tiny_model(ids).logits, sdpa, **tolerance)


def test_eager_attention_weights_and_hidden_states(tiny_model, ids):
    tiny_model.set_attn_implementation("eager")
    out = tiny_model(ids, output_attentions=True, output_hidden_states=True)
    assert len(out.attentions) == 3
    assert len(out.hidden_states) == 4
    for weights in out.attentions:
        assert weights.shape == (2, 6, 70, 70)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6, 70))
        assert weights.triu(1).abs().max() == 0
    torch.testing.assert_close(tiny_model.compute_logits(out.hidden_states[-1]), out.logits)
    assert torch.equal(out.hidden_states[0], tiny_model.model.embed_tokens(ids))


def greedy(model, prompt, steps):
    """Greedy decoding with nothing but full forward passes."""
    ids = prompt[None]
    for _ in range(steps):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :]


@torch.no_grad()
def test_generate_is_greedy_search_step_by_step(tiny_model, ids):
    out = tiny_model.generate(ids[:1, :12], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(out[0, 12:], greedy(tiny_model, ids[0, :12], 20))


@torch.no_grad()
def test_generate_with_left_padding(tiny_model, ids):
    batch, mask = ids[:, :15].clone(), torch.ones(2, 15, dtype=torch.long)
    batch[1, :6], mask[1, :6] = 0, 0
    out = tiny_model.generate(
        batch, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(out[0, 15:], greedy(tiny_model, batch[0], 12))
    assert torch.equal(out[1, 15:], greedy(tiny_model, batch[1, 6:], 12))


@torch.no_grad()
def test_generate_with_static_cache_and_beams(tiny_model, ids):
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = tiny_model.generate(ids[:, :12], **options)
    static = tiny_model.generate(ids[:, :12], cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(plain, static)
    assert tiny_model.generate(ids[:, :12], num_beams=3, **options).shape == (2, 22)


@torch.no_grad()
def test_whole_forward_is_one_graph(tiny_model, ids):
    """Captured by torch.compile without a break, static cache included, as `generate` does it on accelerators."""
    compiled = torch.compile(tiny_model.forward, backend="eager", fullgraph=True)
    caches = [StaticCache(config=tiny_model.config, max_cache_len=64) for _ in range(2)]
    for span in (slice(0, 20), slice(20, 21), slice(21, 22)):
        got, wanted = (
            forward(ids[:, span], past_key_values=cache, use_cache=True).logits
            for forward, cache in zip((compiled, tiny_model), caches, strict=True)
        )
        torch.testing.assert_close(got, wanted)


def test_logits_to_keep(tiny_model, ids):
    full = tiny_model(ids).logits
    torch.testing.assert_close(tiny_model(ids, logits_to_keep=3).logits, full[:, -3:])
    torch.testing.assert_close(tiny_model(ids, logits_to_keep=torch.tensor([4, 9])).logits, full[:, [4, 9]])


def test_embeddings_in_place_of_ids(tiny_model, ids):
    embeddings = tiny_model.get_input_embeddings()(ids)
    torch.testing.assert_close(tiny_model(inputs_embeds=embeddings).logits, tiny_model(ids).logits)
    with pytest.raises(ValueError, match="exactly one"):
        tiny_model(ids, inputs_embeds=embeddings)
    with pytest.raises(ValueError, match="exactly one"):
        tiny_model()


def test_tuple_output(tiny_model, ids):
    logits, hidden = tiny_model(ids).logits, tiny_model.model(ids).last_hidden_state
    assert torch.equal(tiny_model(ids, return_dict=False, use_cache=False)[0], logits)
    tiny_model.config.return_dict = False
    assert torch.equal(tiny_model(ids)[0], logits)
    assert torch.equal(tiny_model.model(ids)[0], hidden)


def test_loss_is_the_mean_over_counted_next_tokens(tiny_model, ids):
    labels = ids.clone()
    labels[0, :30] = -100
    out = tiny_model(ids, labels=labels)
    targets, predicted = labels[:, 1:].flatten(), out.logits[:, :-1].flatten(0, 1)
    expected = F.cross_entropy(predicted[targets != -100], targets[targets != -100])
    torch.testing.assert_close(out.loss, expected)
    half = tiny_model(ids, labels=labels, num_items_in_batch=2 * int((targets != -100).sum())).loss
    torch.testing.assert_close(half, expected / 2)


def test_gradients_reach_every_parameter_and_are_right(tiny_model, ids):
    tiny_model.train().double()
    loss = tiny_model(ids, labels=ids).loss
    loss.backward()
    for name, parameter in tiny_model.named_parameters():
        assert parameter.grad is not None, name
        # A key's bias shifts all scores of a query alike; with q/k norm behind it that no longer cancels.
        assert parameter.grad.abs().max() > 0, name
    # A step along the gradient raises the loss by the step times the gradient's squared norm.
    step = 1e-3
    norm2 = sum((p.grad**2).sum() for p in tiny_model.parameters())
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter += step * parameter.grad / norm2
        risen = tiny_model(ids, labels=ids).loss
    assert (risen - loss.detach()).item() / step == pytest.approx(1.0, rel=0.02)


def test_gradient_checkpointing_changes_no_gradient(tiny_model, ids):
    tiny_model.train()
    tiny_model(ids, labels=ids).loss.backward()
    plain = {name: parameter.grad.clone() for name, parameter in tiny_model.named_parameters()}
    tiny_model.zero_grad()
    tiny_model.gradient_checkpointing_enable()
    tiny_model(ids, labels=ids).loss.backward()
    for name, parameter in tiny_model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load_is_identity(tiny_model, ids, tmp_path, dtype):
    tiny_model.to(dtype).save_pretrained(tmp_path)
    again = StilleForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert again.config.to_diff_dict() == tiny_model.config.to_diff_dict()
    before, after = tiny_model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, tiny_model(ids).logits)


def test_auto_classes_know_saved_folders(tiny_model, ids, tmp_path):
    tiny_model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert isinstance(AutoConfig.from_pretrained(tmp_path), StilleConfig)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, StilleForCausalLM)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, tiny_model(ids).logits)


def test_importing_the_package_is_enough_for_auto_classes(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    code = (
        "import sys, stille.model; from transformers import AutoModelForCausalLM; "
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__module__)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "stille.model.decoder"


def test_fresh_model_starts_near_uniform():
    """Initialisation follows the configuration: a new model predicts next to nothing."""
    torch.manual_seed(0)
    config = StilleConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model = StilleForCausalLM(config)
    assert 0.01 < float(model.model.layers[0].mlp.up_proj.weight.detach().std()) < 0.03
    probabilities = model(torch.arange(20)[None]).logits.softmax(-1)
    assert float(probabilities.detach().max()) < 0.05
