"""Loaded by schemathesis (see test_openapi.py): what its own check of accepted requests cannot know."""

import schemathesis

# What a request that keeps the schema may still be refused for: no JSON Schema can say it.
BEYOND_THE_SCHEMA = {
    "context_length_exceeded",
    "grammar_too_complex",
    "incompatible_parameters",
    "invalid_prompt",
    "invalid_request",
    "previous_response_not_found",
}


@schemathesis.check
def valid_requests_are_refused_only_beyond_the_schema(ctx, response, case):
    if case.meta is not None and case.meta.generation.mode.is_positive and response.status_code == 400:
        error = response.json()["error"]
        code = error["code"] if "code" in error else error["details"]["error_code"]  # OpenAI's form, Anthropic's
        assert code in BEYOND_THE_SCHEMA, f"a valid request was refused: {response.text}"
