"""What a model returns: texts that know how they were made."""

from __future__ import annotations

from typing import Any, NamedTuple


class TokenLogprobs(NamedTuple):
    """Natural logarithms of probabilities, before bias, penalties and temperature."""

    logprob: float
    """Of the token itself."""
    top: list[tuple[int, float]]
    """The most probable tokens with theirs, in order."""


class Timings(NamedTuple):
    """Counts of tokens, and times in seconds."""

    prompt_tokens: int
    """Tokens of the prompt."""
    cached_tokens: int
    """Tokens of the prompt that an earlier request had computed."""
    generated_tokens: int
    """Tokens generated, the stop token included."""
    prefill_s: float
    """From the first step to the first generated token."""
    decode_s: float
    """From the first generated token to the last."""
    first_token_s: float
    """From the request to the first generated token."""


class ToolCall(NamedTuple):
    """A call of a tool."""

    id: str
    """A random id, which the message with the tool's answer repeats."""
    name: str
    """The name of the tool."""
    arguments: str
    """The arguments: an object in JSON."""

    def as_message(self) -> dict[str, Any]:
        """The call as a part of an assistant's message in OpenAI's API."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class Result(str):
    """A whole answer: a `str` with the text, and how it was made.

    Wherever a text fits, a result fits: it prints, joins and turns into JSON as its text.
    """

    tokens: list[int]
    """The generated tokens, the stop token included."""
    finish_reason: str
    """`"stop"` at a stop token or stop string; `"length"` at `max_tokens` or a full context;
    `"tool_calls"` if the answer calls tools."""
    logprobs: list[TokenLogprobs] | None
    """One for each of `tokens`, if `logprobs` was given."""
    timings: Timings
    """Counts of tokens, and times."""
    seed: int
    """The seed: the same request with it gives the same text."""
    prompt_tokens: list[int]
    """The tokens of the prompt."""
    prompt_logprobs: list[TokenLogprobs | None] | None
    """One for each of `prompt_tokens`, `None` for the first, if `prompt_logprobs` was given."""
    full_text: str
    """The text as the model wrote it: of a conversation with thinking and calls."""
    reasoning: str | None = None
    """The thinking of an answer to a conversation, if there is any."""
    tool_calls: list[ToolCall] = []
    """The calls of tools in an answer to a conversation."""

    @property
    def text(self) -> str:
        """The text alone, as a plain `str`."""
        return str.__str__(self)

    @property
    def message(self) -> dict[str, Any]:
        """The answer as the next message of the conversation."""
        calls = [call.as_message() for call in self.tool_calls]
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        return {**message, "tool_calls": calls} if calls else message


class Receipt(dict[str, Any]):
    """The record of a run: the fields of `docs/receipt.schema.json`."""

    text: str
    """The receipt as the file that `bitnet run --receipt` writes."""
    result: Result
    """The answer."""


class Piece(str):
    """A piece of an answer: a `str` with the new text, which may be empty."""

    token: int | None = None
    """The token; `None` in the last piece, whose text was held back until the end."""
    logprobs: TokenLogprobs | None = None
    """Of the token, if `logprobs` was given."""
    finish_reason: str | None = None
    """In the last piece: `"stop"`, `"length"` or `"tool_calls"`."""
    timings: Timings | None = None
    """In the last piece: counts of tokens, and times."""
    tool_calls: list[ToolCall] = []
    """In the last piece: the calls of tools in an answer to a conversation."""

    @property
    def text(self) -> str:
        """The text alone, as a plain `str`."""
        return str.__str__(self)


def result(whole, request, has_logprobs: bool, has_prompt_logprobs: bool) -> Result:
    """The result of a request from the native answer."""
    text, tokens, logprobs, (finish_reason, timings), prompt_logprobs = whole
    content, reasoning, calls, finish_reason = _read(request, text, finish_reason)
    out = Result(content)
    out.full_text = text
    out.reasoning = reasoning
    out.tool_calls = calls
    out.tokens = tokens
    out.finish_reason = finish_reason
    out.logprobs = [TokenLogprobs(*entry) for entry in logprobs] if has_logprobs else None
    out.timings = Timings(*timings)
    out.seed = request.seed
    out.prompt_tokens = request.prompt_tokens
    out.prompt_logprobs = None
    if has_prompt_logprobs:
        out.prompt_logprobs = [None, *(TokenLogprobs(*entry) for entry in prompt_logprobs)]
    return out


def _read(request, text: str, finish_reason: str | None):
    """The text of an answer without thinking and calls, these, and the finish reason."""
    if (answer := request.read(text)) is None:
        return text, None, [], finish_reason
    content, reasoning, calls, has_whole_calls = answer
    if has_whole_calls and finish_reason == "stop":
        finish_reason = "tool_calls"
    return content, reasoning or None, [ToolCall(*call) for call in calls], finish_reason


def end(last: Piece, text: str, request) -> None:
    """Adds to the last piece of the answer `text` what only its end shows."""
    _, _, last.tool_calls, last.finish_reason = _read(request, text, last.finish_reason)


def piece(native) -> Piece:
    """A piece from the native one."""
    text, token, logprobs, finish = native
    out = Piece(text)
    out.token = token
    if logprobs is not None:
        out.logprobs = TokenLogprobs(*logprobs)
    if finish is not None:
        out.finish_reason = finish[0]
        out.timings = Timings(*finish[1])
    return out
