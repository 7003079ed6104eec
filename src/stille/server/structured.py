"""From `response_format` to a grammar, compiled off the event loop."""

from starlette.concurrency import run_in_threadpool

from stille.engine.async_llm import AsyncLLM
from stille.engine.grammar import Grammar
from stille.engine.sampling_params import SamplingParams
from stille.errors import UnsupportedError
from stille.server.errors import ApiError
from stille.server.schemas.formats import (
    JsonObjectFormat,
    JsonSchemaFormat,
    LarkFormat,
    RegexFormat,
    ResponseFormat,
)

PARAM = "response_format"


async def response_grammar(asked: ResponseFormat | None) -> Grammar | None:
    """The grammar of a format; None: any text.

    Raises:
        InvalidRequestError: it is too large, or its schema cannot be read.
    """
    if isinstance(asked, JsonObjectFormat):
        return Grammar.json_object(PARAM)
    if isinstance(asked, JsonSchemaFormat):
        return await run_in_threadpool(Grammar.json_schema, asked.json_schema.document, PARAM)
    if isinstance(asked, RegexFormat):
        return await run_in_threadpool(Grammar.regex, asked.regex, PARAM)
    if isinstance(asked, LarkFormat):
        return await run_in_threadpool(Grammar.lark, asked.lark, PARAM)
    return None


async def compile_grammar(engine: AsyncLLM, params: SamplingParams) -> None:
    """Compile the parameters' grammar, if they have one, in a worker thread: it may take a tenth of a second.

    Raises:
        InvalidRequestError: it cannot be compiled.
        ApiError: grammars do not work with this model.
    """
    if params.grammar is None or engine.compiled(params):
        return
    try:
        await run_in_threadpool(engine.compile, params)
    except UnsupportedError as error:
        raise ApiError(400, str(error), code="unsupported_parameter", param=params.grammar.param) from error
