"""From conversations to calls: a tiny random model learns thirty of them, is written, and calls under the grammar."""

import json

import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from stille.cli import train_sft
from stille.engine.llm import LLM
from stille.engine.sampling_params import SamplingParams
from stille.engine.tool_calls import ToolCallParser
from stille.engine.tool_grammar import Function, as_text, call_grammar
from stille.model import StilleConfig, StilleForCausalLM

NAMES = ("open_door", "feed_cat", "ring_bell")
WORDS = ("red", "blue", "green", "grey", "black", "white", "pink", "brown", "gold", "teal")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]},
        },
    }
    for name in NAMES
]


def asked(name: str, word: str) -> str:
    return f"{name.replace('_', ' ')} {word}"


def row(name: str, word: str) -> dict:
    call = {"id": "a", "type": "function", "function": {"name": name, "arguments": json.dumps({"x": word})}}
    return {
        "messages": [
            {"role": "user", "content": asked(name, word)},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
        "tools": TOOLS,
    }


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Two layers, random, and a tokenizer that knows the instruction by heart, so that prompts are short."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("start") / "model"
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    functions = [Function(**tool["function"]) for tool in TOOLS]
    corpus = [as_text([{"role": "user", "content": ""}], functions)[0]["content"]] * 3
    corpus += 2 * [f'{asked(name, word)} {name} "{word}"' for name in NAMES for word in WORDS]  # a token for each word
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=specials,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(corpus, trainer)
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    model = StilleForCausalLM(
        StilleConfig(
            vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id, initializer_range=0.1,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stille_train():
    app = Typer()
    app.callback()(lambda: None)
    app.command("sft")(train_sft.command)
    return lambda *words: CliRunner().invoke(app, ["sft", "--device", "cpu", "--threads", "1", *map(str, words)])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "calls.jsonl"
    file.write_text("".join(json.dumps(row(name, word)) + "\n" for name in NAMES for word in WORDS))
    return file


def test_a_tiny_model_learns_six_conversations_and_calls_under_the_grammar(start, stille_train, tmp_path):
    wanted = [(name, word) for name in NAMES[:2] for word in WORDS[:3]]
    data = tmp_path / "calls.jsonl"
    data.write_text("".join(json.dumps(row(*each)) + "\n" for each in wanted))
    run = stille_train(
        "--model", start, "--data", data, "--held-out", "0", "--out", tmp_path, "--full", "--lr", "0.006",
        "--steps", "90", "--seq-len", "288", "--batch-tokens", "1152", "--micro-tokens", "1152", "--warmup", "5",
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    losses = [json.loads(line)["next_token"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] > 6
    assert losses[-1] < 0.03
    llm = LLM(str(tmp_path / "model"), device="cpu", dtype="fp32", max_model_len=512)
    functions = [Function(**tool["function"]) for tool in TOOLS]
    grammar = call_grammar(functions, forced=False, parallel=True)
    messages = [[{"role": "user", "content": asked(*each)}] for each in wanted]
    prompts = [llm.prompts.render_chat(as_text(each, functions)) for each in messages]
    params = SamplingParams(max_tokens=60, temperature=0.0, grammar=grammar)
    answers = llm.generate(prompts, params, progress=False)
    for (name, word), answer in zip(wanted, answers, strict=True):
        text = answer.outputs[0].text
        parser = ToolCallParser()
        parser.feed(text)
        assert (parser.calls, parser.complete) == (1, True), text
        assert text == f'<tool_call>\n{{"name": "{name}", "arguments": {{"x": "{word}"}}}}\n</tool_call>'


def test_the_command_goes_on_and_tells_mistakes(start, data, stille_train, tmp_path):
    asked = ("--model", start, "--data", data, "--out", tmp_path / "run", "--seq-len", "512", "--held-out", "0.2")
    run = stille_train(*asked, "--epochs", "2", "--batch-tokens", "1024", "--lora", "4")
    assert run.exit_code == 0, run.output
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    rows = report["data"]["train"]["rows"]
    assert report["steps"] == -(-2 * rows // 2)
    assert report["rank"] == 4
    assert report["data"]["train"]["conversations"] + report["data"]["held_out"]["conversations"] == 30
    assert (tmp_path / "run" / "model" / "delta.json").exists()
    assert "held out calls" in run.output
    for words, told in (
        (("--epochs", "3"), "another run"),
        (("--validation", data), "none is left to learn from"),
        (("--no-resume",), "holds a run"),
        (("--steps", "1", "--epochs", "1"), "give one of them"),
        (("--full", "--lora", "2"), "give one of them"),
    ):
        run = stille_train(*asked, "--batch-tokens", "1024", *words)
        assert run.exit_code != 0
        assert told in " ".join((run.output + str(run.exception)).replace("│", " ").split())
