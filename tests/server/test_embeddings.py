"""Embeddings through the official client, against the model's own hidden states."""

import asyncio
import base64
import time

import httpx
import numpy as np
import openai
import pytest
import torch

TEXTS = ["the old grey stones", "Zürich 東京", "fox", "the quick brown fox jumps over the lazy dog " * 8]


@pytest.fixture
def client(idle):
    with openai.OpenAI(base_url=f"{idle.base}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def expected(tiny_checkpoint):
    """The embedding of token ids, by transformers."""
    from stille.model import StilleForCausalLM

    model = StilleForCausalLM.from_pretrained(tiny_checkpoint).eval()

    @torch.inference_mode()
    def mean(ids):
        out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        mean_C = out.hidden_states[-1][0].mean(dim=0)
        return (mean_C / mean_C.norm()).numpy()

    return mean


def encode(idle, text):
    return idle.engine.tokenizer.encode(text)


def post(idle, **fields):
    return httpx.post(f"{idle.base}/v1/embeddings", json={"model": idle.model, "input": "fox", **fields}, timeout=60)


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_several_texts_in_their_order(client, idle, expected, encoding):
    arguments = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model=idle.model, input=TEXTS, **arguments)
    assert (answer.object, answer.model) == ("list", idle.model)
    assert [item.index for item in answer.data] == list(range(len(TEXTS)))
    for item, text in zip(answer.data, TEXTS, strict=True):
        vector = item.embedding
        if isinstance(vector, str):  # asked for, so the client leaves it so
            vector = np.frombuffer(base64.b64decode(vector), "<f4")
        np.testing.assert_allclose(vector, expected(encode(idle, text)), atol=2e-6)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(encode(idle, text)) for text in TEXTS)


def test_every_form_of_input_says_the_same(client, idle):
    ids = [encode(idle, text) for text in TEXTS]
    whole = client.embeddings.create(model=idle.model, input=TEXTS).data
    for same in (
        client.embeddings.create(model=idle.model, input=ids).data,
        [client.embeddings.create(model=idle.model, input=text).data[0] for text in TEXTS],
        [client.embeddings.create(model=idle.model, input=one).data[0] for one in ids],
    ):
        for a, b in zip(whole, same, strict=True):
            np.testing.assert_allclose(a.embedding, b.embedding, atol=2e-6)


def test_base64_is_float32(idle):
    plain = post(idle).json()["data"][0]["embedding"]
    packed = post(idle, encoding_format="base64").json()["data"][0]["embedding"]
    assert np.frombuffer(base64.b64decode(packed), "<f4").tolist() == plain


def test_dimensions_are_the_models(idle):
    assert post(idle, dimensions=64).status_code == 200
    response = post(idle, dimensions=32)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "dimensions"
    assert "64" in error["message"]


def test_the_longest_input_and_one_that_is_longer(idle):
    assert post(idle, input=[5] * 2048).json()["usage"]["prompt_tokens"] == 2048
    for wrong in ([5] * 2049, [[5], [5] * 2049], "harbour " * 4000):
        error = post(idle, input=wrong)
        assert error.status_code == 400
        assert error.json()["error"]["code"] == "context_length_exceeded"
        assert error.json()["error"]["param"] == "input"
        assert "2048" in error.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x", ""]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": 5}, "input"),
        ({"input": None}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": [1, "x"]}, "input"),
        ({"input": [999_999]}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"model": 5}, "model"),
        ({"task": "search"}, "task"),
    ],
    ids=[f"e{i}" for i in range(14)],
)
def test_what_is_wrong_is_named(idle, fields, param):
    response = post(idle, **fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].split("[")[0] == param


def test_another_model(client):
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-9", input="x")


async def test_many_clients_and_a_stream_beside_them(idle, expected):
    async with openai.AsyncOpenAI(base_url=f"{idle.base}/v1", api_key="unused", max_retries=0) as client:
        ask = {"model": idle.model, "messages": [{"role": "user", "content": "Go on."}], "temperature": 0}
        alone = await client.chat.completions.create(max_tokens=60, **ask)
        texts = [f"{text} {number}" for number in range(6) for text in TEXTS]
        answers = await asyncio.gather(
            client.chat.completions.create(max_tokens=60, **ask),
            *(client.embeddings.create(model=idle.model, input=text) for text in texts),
        )
    assert answers[0].choices[0].message.content == alone.choices[0].message.content
    for text, answer in zip(texts, answers[1:], strict=True):
        np.testing.assert_allclose(answer.data[0].embedding, expected(encode(idle, text)), atol=2e-6)


def test_leaving_ends_the_work(idle):
    """What a client that is gone has asked for is not computed."""
    before = idle.metrics()["stille_embedding_tokens_total"]
    inputs = [[number % 300 + 3] * 2000 for number in range(500)]
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{idle.base}/v1/embeddings", json={"model": idle.model, "input": inputs}, timeout=0.5)
    assert post(idle).status_code == 200
    idle.wait_idle()
    settled = idle.metrics()["stille_embedding_tokens_total"]
    assert before < settled < before + 500 * 2000 / 2
    time.sleep(0.3)
    assert idle.metrics()["stille_embedding_tokens_total"] == settled
