"""What a request to the API may hold, field by field; anything else is refused by its name.

The names and meanings are the OpenAI dialect's, with this project's own sampling settings beside them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

MOST_TEXTS = 16
MOST_MESSAGES = 1000
MOST_STOPS = 16
LONGEST_STOP = 200

Number = StrictFloat | StrictInt
Text = Annotated[StrictStr, Field(max_length=10_000_000)]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=LONGEST_STOP)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StreamOptions(_Strict):
    """What a stream says besides the text."""

    include_usage: StrictBool = False


class Sampled(_Strict):
    """How texts are drawn, and when they end: what both kinds of request have in common."""

    model: StrictStr
    temperature: Annotated[Number, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[StrictInt, Field(ge=0)] = 0
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    typical_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    repetition_penalty: Annotated[Number, Field(gt=0, le=100)] = 1.0
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[dict[StrictStr, Number], Field(max_length=1000)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MOST_TEXTS)] = 1
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    user: StrictStr | None = None


class CompletionRequest(Sampled):
    """POST /v1/completions: continue a prompt, a text or ids."""

    prompt: Text | Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(min_length=1)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] = 16
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None


class TextPart(_Strict):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: Text


class Message(_Strict):
    """What one side said."""

    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=1000)]

    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class JsonSchema(_Strict):
    """A schema and its name."""

    name: StrictStr
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: StrictBool | None = None
    description: StrictStr | None = None


class ResponseFormat(_Strict):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(Sampled):
    """POST /v1/chat/completions: the next answer in a conversation."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool = False
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
