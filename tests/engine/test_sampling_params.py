import pytest

from stille.engine.sampling_params import SamplingParams
from stille.errors import InvalidRequestError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 1.0),
        ("n", 129),
        ("max_tokens", 0),
        ("max_tokens", "5"),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -1),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("seed", 2**63),
        ("seed", 1.5),
        ("logprobs", 21),
        ("logprobs", True),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", 5),
        ("stop", ["x"] * 17),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", "12"),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {"1": 1.0}),
        ("logit_bias", [1]),
        ("ignore_eos", 1),
    ],
)
def test_a_bad_value_is_refused_and_named(field, value):
    with pytest.raises(InvalidRequestError, match=field) as caught:
        SamplingParams(**{field: value})
    assert caught.value.param == field


def test_values_are_normalised():
    params = SamplingParams(stop="end", stop_token_ids=[3, 4], logit_bias={7: 1})
    assert params.stop == ("end",)
    assert params.stop_token_ids == (3, 4)
    assert params.logit_bias == {7: 1.0}


def test_tokens_outside_the_vocabulary_are_refused():
    SamplingParams(logit_bias={9: 1}).check_vocabulary(10)
    with pytest.raises(InvalidRequestError, match="token 10"):
        SamplingParams(stop_token_ids=[10]).check_vocabulary(10)
