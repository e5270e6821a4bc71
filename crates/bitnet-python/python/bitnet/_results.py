"""What a model returns: texts that know how they were made."""

from __future__ import annotations

from typing import NamedTuple


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


class Result(str):
    """A whole answer: a `str` with the text, and how it was made.

    Wherever a text fits, a result fits: it prints, joins and turns into JSON as its text.
    """

    tokens: list[int]
    """The generated tokens, the stop token included."""
    finish_reason: str
    """`"stop"` at a stop token or stop string; `"length"` at `max_tokens` or a full context."""
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

    @property
    def text(self) -> str:
        """The text alone, as a plain `str`."""
        return str.__str__(self)


class Piece(str):
    """A piece of an answer: a `str` with the new text, which may be empty."""

    token: int | None = None
    """The token; `None` in the last piece, whose text was held back until the end."""
    logprobs: TokenLogprobs | None = None
    """Of the token, if `logprobs` was given."""
    finish_reason: str | None = None
    """In the last piece: `"stop"` or `"length"`."""
    timings: Timings | None = None
    """In the last piece: counts of tokens, and times."""

    @property
    def text(self) -> str:
        """The text alone, as a plain `str`."""
        return str.__str__(self)


def result(whole, request, has_logprobs: bool, has_prompt_logprobs: bool) -> Result:
    """The result of a request from the native answer."""
    text, tokens, logprobs, (finish_reason, timings), prompt_logprobs = whole
    out = Result(text)
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
