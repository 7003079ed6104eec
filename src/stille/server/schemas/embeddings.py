"""Bodies of /v1/embeddings."""

from typing import Annotated, Literal

from pydantic import Field

from stille.server.schemas.base import Integral, ModelName, RequestBody, ResponseBody
from stille.server.schemas.completions import PromptIds, PromptText

MAX_INPUTS = 2048  # OpenAI's limit


class EmbeddingRequest(RequestBody):
    """Texts to embed, each by itself: the mean of the model's last hidden states, scaled to length 1."""

    model: ModelName = Field(description="A name listed by GET /v1/models.")
    input: (
        PromptText
        | Annotated[list[PromptText], Field(min_length=1, max_length=MAX_INPUTS)]
        | PromptIds
        | Annotated[list[PromptIds], Field(min_length=1, max_length=MAX_INPUTS)]
    ) = Field(description="A text, a list of texts, a list of token ids, or a list of such lists.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: little-endian float32; default float."
    )
    dimensions: Annotated[int, Field(ge=1), Integral] | None = Field(
        None, description="The model's hidden size and no other number: its states cannot be shortened."
    )
    user: str | None = Field(None, description="Accepted; has no effect.")

    def inputs(self) -> list[str] | list[list[int]]:
        """The inputs as a list, whichever form the request used."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]  # pyright: ignore[reportReturnType]
        return self.input  # pyright: ignore[reportReturnType]


class Embedding(ResponseBody):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(ResponseBody):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(ResponseBody):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
