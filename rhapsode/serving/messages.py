"""What a request to the API may hold, field by field; anything else is refused by its name.

The names and meanings are the OpenAI dialect's (`return_token_ids`: vLLM's), with this project's own sampling settings
beside them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from rhapsode.inference.styles import Style

MOST_TEXTS = 16
MOST_BEAMS = 16
MOST_PROMPTS = 256
MOST_MESSAGES = 1000
MOST_TOOLS = 128
MOST_STOPS = 16
MOST_TEMPERATURES = 64
MOST_CHOICES = 1000
LONGEST_STOP = 200
LONGEST_FORM = 100_000
MOST_TOKENS = 2**31 - 1

Number = StrictFloat  # a whole one too
Text = Annotated[StrictStr, Field(max_length=10_000_000)]
Id = Annotated[StrictInt, Field(ge=0, lt=2**31)]
Count = Annotated[StrictInt, Field(ge=0, le=MOST_TOKENS)]
# fail_fast: of a list of a million wrong values one is told, not a million.
Ids = Annotated[list[Id], Field(min_length=1, max_length=1_000_000, fail_fast=True)]
Prompts = Annotated[list[Text], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
PromptIds = Annotated[list[Ids], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=LONGEST_STOP)]
Form = Annotated[StrictStr, Field(min_length=1, max_length=LONGEST_FORM)]
IdName = Annotated[StrictStr, Field(max_length=10)]
Bias = Annotated[Number, Field(ge=-100, le=100)]
Name = Annotated[StrictStr, Field(min_length=1, max_length=200)]


class Strict(BaseModel):
    """Fields that are not named are refused, and values are what they should be or are refused."""

    model_config = ConfigDict(extra="forbid")


class Shaped(Strict):
    """What makes tokens more or less likely, and which are kept: the steps of docs/generation.md, temperature aside."""

    model: StrictStr
    style: Style | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[StrictInt, Field(ge=0, le=2**31)] = 0
    min_p: Annotated[Number, Field(ge=0, le=1)] = 0.0
    typical_p: Annotated[Number, Field(gt=0, le=1)] = 1.0
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=100)] = 1.0
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[dict[IdName, Bias], Field(max_length=1000)] | None = None


class StreamOptions(Strict):
    """What a stream says besides the text."""

    include_usage: StrictBool = False


class JsonSchema(Strict):
    """A schema and its name."""

    name: StrictStr
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: StrictBool | None = None
    description: StrictStr | None = None


class ResponseFormat(Strict):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Sampled(Shaped):
    """How texts are drawn or searched for, and when they end: what both kinds of request have in common."""

    temperature: Annotated[Number, Field(ge=0, le=100)] = 1.0
    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MOST_TEXTS)] = 1
    beams: Annotated[StrictInt, Field(ge=1, le=MOST_BEAMS)] = 1
    length_penalty: Annotated[Number, Field(ge=-100, le=100)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stop_token_ids: Annotated[list[Id], Field(max_length=MOST_STOPS)] | None = None
    response_format: ResponseFormat | None = None
    regex: Form | None = None
    grammar: Form | None = None
    choice: Annotated[list[Form], Field(min_length=1, max_length=MOST_CHOICES, fail_fast=True)] | None = None
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    return_token_ids: StrictBool = False
    user: StrictStr | None = None


class CompletionRequest(Sampled):
    """POST /v1/completions: continue a prompt, a text or ids, or several of them."""

    prompt: Text | Ids | Prompts | PromptIds
    max_tokens: Count = 16
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    echo: StrictBool = False


class TextPart(Strict):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: Text


Content = Text | Annotated[list[TextPart], Field(max_length=1000)]


class CalledFunction(Strict):
    """What an assistant called, and with what: JSON, as a text."""

    name: Name
    arguments: Text


class ToolCall(Strict):
    """A call that an assistant made."""

    id: Name
    type: Literal["function"]
    function: CalledFunction


class Message(Strict):
    """What one side said; a tool's is what it answered. `developer` is another word for `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MOST_TOOLS)] | None = None
    tool_call_id: Name | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.role != "assistant" and (self.tool_calls or self.content is None):
            raise ValueError(f"{'tool_calls are' if self.tool_calls else 'no content is'} for the role {self.role}")
        if self.role == "assistant" and self.content is None and not self.tool_calls:
            raise ValueError("there is neither content nor tool_calls")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id belongs to the role tool, and to no other")
        return self

    def text(self) -> str:
        """All of it."""
        content = self.content or ""
        return content if isinstance(content, str) else "".join(part.text for part in content)


class Function(Strict):
    """What a model may call."""

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class ToolDefinition(Strict):
    """A function, as the only kind of tool."""

    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    """A function by its name."""

    name: Name


class ToolChoice(Strict):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


class ChatRequest(Sampled):
    """POST /v1/chat/completions: the next answer in a conversation."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Annotated[StrictInt, Field(ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: StrictBool = False
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: StrictBool = True


class EmbeddingRequest(Strict):
    """POST /v1/embeddings: a vector for each text."""

    model: StrictStr
    input: Text | Ids | Prompts | PromptIds
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[StrictInt, Field(ge=1, le=MOST_TOKENS)] | None = None
    user: StrictStr | None = None


class TokenizeRequest(Strict):
    """POST /v1/tokenize: the ids of a prompt, or of a conversation up to where the assistant begins."""

    model: StrictStr
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)] | None = None


class NextRequest(Shaped):
    """POST /v1/next: what may come next, at several temperatures, step by step."""

    prompt: Text | Ids
    prompt_length: Count | None = None
    temperatures: Annotated[
        list[Annotated[Number, Field(ge=0, le=100)]], Field(min_length=1, max_length=MOST_TEMPERATURES)
    ] = [1.0]  # pydantic copies it
    top: Annotated[StrictInt, Field(ge=1, le=100)] = 10
    tokens: Annotated[list[Id], Field(max_length=100, fail_fast=True)] = []
