"""`response_format`: what an answer must look like."""

from typing import Annotated, Any, Literal

from pydantic import Field

from stille.server.schemas.base import RequestBody

NAME_PATTERN = r"^[a-zA-Z0-9_-]{1,64}$"
"""Of functions and schemas, as OpenAI has it."""


class TextFormat(RequestBody):
    type: Literal["text"]


class JsonObjectFormat(RequestBody):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(RequestBody):
    """A JSON schema, which always holds. Name, description and strict have no effect; the model sees nothing of it."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str | None = None
    document: Annotated[dict[str, Any], Field(alias="schema", description="JSON Schema, draft 2020-12.")]
    strict: bool | None = None


class JsonSchemaFormat(RequestBody):
    """JSON that is valid for a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class RegexFormat(RequestBody):
    """Text that a regular expression matches as a whole (Rust's syntax, no look-around). An extension."""

    type: Literal["regex"]
    regex: Annotated[str, Field(min_length=1)]


class LarkFormat(RequestBody):
    """Text of a context-free grammar in llguidance's variant of Lark. An extension."""

    type: Literal["lark"]
    lark: Annotated[str, Field(min_length=1)]


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | RegexFormat | LarkFormat, Field(discriminator="type")
]
