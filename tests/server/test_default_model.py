"""The default model behind the server, as a user meets it: fp32, the official client."""

import openai
import pytest


@pytest.fixture(scope="module")
def client(start_server, default_model_path):
    from stille.server import ServerSettings

    settings = ServerSettings(served_model_names=("stille-135m",))
    with (
        start_server(default_model_path, settings, max_num_seqs=4, kv_cache_tokens=4096) as server,
        openai.OpenAI(base_url=f"{server.base}/v1", api_key="unused", timeout=120) as client,
    ):
        yield client
        server.wait_idle()


def test_it_knows_a_capital_streamed_and_whole(client):
    arguments = {
        "model": "stille-135m",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "temperature": 0,
        "max_tokens": 16,
    }
    whole = client.chat.completions.create(**arguments)
    assert whole.choices[0].message.content == "The capital of France is Paris."
    assert whole.choices[0].finish_reason == "stop"
    streamed = client.chat.completions.create(**arguments, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == whole.choices[0].message.content
