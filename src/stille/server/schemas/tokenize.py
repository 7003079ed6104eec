"""Bodies of /tokenize and /detokenize."""

from typing import Annotated

from pydantic import Field

from stille.server.schemas.base import ModelName, RequestBody, ResponseBody, TokenId
from stille.server.schemas.chat import MAX_MESSAGES, Message
from stille.server.schemas.tools import Tools

MAX_IDS = 1_000_000


class TokenizeText(RequestBody):
    """Tokenise plain text, as /v1/completions would."""

    prompt: str
    model: ModelName | None = None
    add_special_tokens: bool = Field(True, description="Add what the tokenizer adds to a prompt, such as BOS.")


class TokenizeChat(RequestBody):
    """Tokenise a conversation through the chat template, as /v1/chat/completions would."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    model: ModelName | None = None
    tools: Tools | None = None


class TokenizeResponse(ResponseBody):
    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeRequest(RequestBody):
    tokens: Annotated[list[TokenId], Field(max_length=MAX_IDS)]
    model: ModelName | None = None


class DetokenizeResponse(ResponseBody):
    prompt: str
