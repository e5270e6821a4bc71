"""Models, and how to load them."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, overload

from . import _native
from ._program import command
from ._progress import LoadBar
from ._results import Receipt, Result, result
from ._streams import AsyncStream, Stream

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, TypedDict

    import numpy
    from typing_extensions import Unpack

    Tokens = Sequence[int]
    """Token ids: a list, a tuple or a NumPy array of whole numbers."""
    Message = Mapping[str, Any]
    """A message as in OpenAI's API: a mapping with `role` and `content`."""

    class Options(TypedDict, total=False):
        """The keywords of generation, described at `Model.generate`."""

        max_tokens: int | None
        min_tokens: int | None
        temperature: float | None
        top_k: int | None
        top_p: float | None
        min_p: float | None
        typical_p: float | None
        repeat_penalty: float | None
        repeat_last_n: int | None
        presence_penalty: float | None
        frequency_penalty: float | None
        logit_bias: Mapping[int, float] | None
        seed: int | None
        stop: str | Sequence[str] | None
        ignore_eos: bool
        logprobs: int | None
        prompt_logprobs: bool

    class ChatOptions(Options, total=False):
        """The keywords of conversations, described at `Model.chat`."""

        tools: Sequence[Mapping[str, Any]] | None
        tool_choice: str | Mapping[str, Any] | None
        parallel_tool_calls: bool | None
        schema: Mapping[str, Any] | type | None
        thinking_budget: int | None
        template_variables: Mapping[str, Any] | None


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    ctx_size: int | None = None,
    kv_type: str = "f16",
    kv_memory: int | None = None,
    parallel: int | None = None,
    draft: int | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    i2_s_form: str = "block128",
    progress: bool | None = None,
) -> Model:
    """Loads a model. Further calls load it again; share one `Model` between threads instead.

    Args:
        model: A GGUF file, a directory as Hugging Face has them, or the name of a model that
            `bitnet pull` has fetched, such as `"2b4t"`. `None` for the built-in story-teller.
        device: `"cpu"`, `"gpu"`, `"auto"` for a GPU if there is one, or a part of the name of an
            adapter, as `bitnet devices` lists them.
        threads: Number of threads, from 1 to 1024; the physical cores that this process may use
            if not given.
        ctx_size: Context length in tokens; 0 for the model's own; the model's, but at most 4096,
            if not given.
        kv_type: Element type of the key/value cache, `"f16"` or `"f32"`.
        kv_memory: Bytes of the key/value cache, which all requests share; 1 GiB, or more if the
            context needs it, if not given. The memory is taken as it is used.
        parallel: Maximum number of requests that run at once; 64 if not given. Others wait.
        draft: Draft up to this number of tokens from earlier text and check them in one step,
            from 0 to 16; 0 if not given. The text is the same.
        chat_template: In place of the model's own: `"bitnet-2b4t"`, `"chatml"`, `"falcon3"`,
            `"falcon-e"`, `"llama3"`, or a file with a template in Jinja.
        i2_s_form: Arrangement of the codes in I2_S files: `"block128"`, `"block64"` or `"row4"`.
        progress: Show a bar while a model is loaded for longer than half a second. If not given,
            only on a terminal and in notebooks.

    Raises:
        ModelNotFoundError: There is no such file, and no pulled model of that name.
        ModelFileError: A file cannot be read.
        ModelError: The model is damaged or not supported.
        RequestError: An argument is invalid, or there is no such device.
    """
    return Model(
        model,
        device=device,
        threads=threads,
        ctx_size=ctx_size,
        kv_type=kv_type,
        kv_memory=kv_memory,
        parallel=parallel,
        draft=draft,
        chat_template=None if chat_template is None else os.fspath(chat_template),
        i2_s_form=i2_s_form,
        progress=progress,
    )


class Model:
    """A loaded model with its engine. Any number of threads and tasks may use it at once: their
    requests run together, and none changes the text of another.

    The engine's threads do not survive `os.fork`: load the model in the child instead.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        progress: bool | None = None,
        **options: Any,
    ) -> None:
        """As `load`."""
        source = None if model is None else os.fspath(model)
        with LoadBar(source, progress) as bar:
            self._engine = _native.Engine.load(
                source, program=command(), progress=bar.show, **options
            )
        self._notifier = None
        self._lock = threading.Lock()
        for warning in self._engine.warnings:
            import warnings

            warnings.warn(warning, stacklevel=3)

    def __repr__(self) -> str:
        info = self.info
        return (
            f"<bitnet.Model {info['name'] or info['source']!r}: {info['architecture']}, "
            f"{_short(info['num_ternary_weights'])} ternary weights ({info['quantization']}), "
            f"{info['num_layers']} layers, context {info['context_length']}, "
            f"{info['device']} ({info['kernels']}, {info['threads']} threads)>"
        )

    @property
    def info(self) -> dict[str, Any]:
        """Facts: name, source, architecture, quantization, num_ternary_weights, num_layers,
        hidden_size, vocab_size, context_length, bos_token, eos_token (`None` without), device,
        kernels, threads."""
        return self._engine.info()

    # A `str` is also a sequence of `str`: the first fit counts.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: str | Tokens, **options: Unpack[Options]
    ) -> Result: ...
    @overload
    def generate(
        self, prompt: Sequence[str] | Sequence[Tokens], **options: Unpack[Options]
    ) -> list[Result]: ...
    def generate(self, prompt, **options):
        """Continues a prompt, or several at once.

        Args:
            prompt: A text or its tokens; or a list of them, which run together.
            max_tokens: Maximum number of tokens to generate; as many as fit into the context if
                not given.
            min_tokens: No stop token and no stop string ends the answer before this number.
            temperature: 0 takes the most probable token. The model's recommendation, else 0.8,
                if not given.
            top_k: Choose among this number of the most probable tokens; 0 for all. The model's,
                else 40.
            top_p: Choose among the most probable tokens that together have this probability; 1
                for all. The model's, else 0.95.
            min_p: Choose among tokens with at least this share of the highest probability; 0 for
                all. The model's, else 0.05.
            typical_p: Choose among the tokens closest to the expected surprise that together have
                this probability; 1, for all, if not given.
            repeat_penalty: Penalty factor for tokens that have occurred: lowers their logits. The
                model's, else 1.
            repeat_last_n: Number of last tokens that the penalties apply to. The model's, else 64.
            presence_penalty: Subtracted from the logits of tokens that have occurred; 0.
            frequency_penalty: Subtracted from the logits of tokens for each time that they have
                occurred; 0.
            logit_bias: Added to the logits of tokens, by token id.
            seed: The same request with the same seed gives the same text, beside any other
                requests, on any machine, and as `bitnet run --seed` does. Drawn if not given; the
                result has it. Several prompts have the same seed.
            stop: A text, or a list of texts, that ends the answer and is not part of it.
            ignore_eos: Continue after the model's end-of-text tokens.
            logprobs: Also return the log-probability of each token and of this number of the most
                probable ones.
            prompt_logprobs: Also return them for the tokens of the prompt. With `max_tokens=0`
                nothing is generated.

        Returns:
            A `Result`, which prints as its text; for a list of prompts a list of them, in order.

        Raises:
            RequestError: An argument is invalid, or the prompt does not fit into the context.
            KeyboardInterrupt: Ctrl-C; the requests are cancelled.
        """
        requests, is_one = self._requests(prompt, options)
        return self._wait(requests, is_one, options)

    def chat(
        self, messages: str | Sequence[Message], **options: Unpack[ChatOptions]
    ) -> Result:
        """Answers a conversation, written in the model's chat template.

        Args:
            messages: The conversation: mappings with `role` and `content` as in OpenAI's API; or
                a text, which is one message of the user. `Result.message` is the next one.
            tools: The tools that the model may call, as in OpenAI's API. Calls always parse and
                have arguments that fit the tool's schema; the result has them as `tool_calls`.
            tool_choice: `"auto"`, `"required"`, `"none"`, or one function as in OpenAI's API.
            parallel_tool_calls: Whether one answer may have several calls; true if not given.
            schema: The answer is JSON of this JSON schema: a mapping, or a class with
                `model_json_schema()`, such as Pydantic's models. Objects have only the declared
                properties.
            thinking_budget: Maximum number of tokens of thinking, for models that think.
            template_variables: More variables of the template, such as `enable_thinking`.
            options: The keywords of `generate`.

        Returns:
            A `Result`, whose text is the answer without thinking and calls.
        """
        request = self._chat_request(messages, options)
        return self._wait([request], True, options)

    def stream(
        self,
        prompt: str | Tokens | Sequence[Message],
        **options: Unpack[ChatOptions],
    ) -> Stream:
        """Continues a prompt, or answers a conversation, piece by piece.

        Args:
            prompt: A text, its tokens, or the messages of a conversation as for `chat`.
            options: The keywords of `generate`; for conversations also the ones of `chat`.

        Returns:
            An iterator over `Piece`s, which print as their text. Together they are the text as the
            model writes it, thinking and calls included; the last piece has the parsed
            `tool_calls`.
        """
        request = self._stream_request(prompt, options)
        return Stream(self._engine.submit(request), request)

    @overload
    async def agenerate(  # type: ignore[overload-overlap]
        self, prompt: str | Tokens, **options: Unpack[Options]
    ) -> Result: ...
    @overload
    async def agenerate(
        self, prompt: Sequence[str] | Sequence[Tokens], **options: Unpack[Options]
    ) -> list[Result]: ...
    async def agenerate(self, prompt, **options):
        """As `generate`, for `asyncio`. Cancelling the task cancels the requests."""
        requests, is_one = self._requests(prompt, options)
        return await self._await(requests, is_one, options)

    async def achat(
        self, messages: str | Sequence[Message], **options: Unpack[ChatOptions]
    ) -> Result:
        """As `chat`, for `asyncio`. Cancelling the task cancels the request."""
        request = await _in_thread(self._chat_request, messages, options)
        return await self._await([request], True, options)

    def astream(
        self,
        prompt: str | Tokens | Sequence[Message],
        **options: Unpack[ChatOptions],
    ) -> AsyncStream:
        """As `stream`, for `async for`."""
        options = {**options, "seed": _seed(options)}  # type: ignore[assignment, misc]

        async def start():
            request = await _in_thread(self._stream_request, prompt, options)
            return self._notices().submit(request, False), request

        return AsyncStream(start, options["seed"])  # type: ignore[arg-type]

    def tokenize(
        self, text: str, *, bos: bool | None = None, parse_special: bool = False
    ) -> list[int]:
        """The tokens of a text, as `generate` gives them to the model.

        Args:
            text: The text.
            bos: Whether the tokens begin with BOS; as the model's files ask if not given.
            parse_special: Read the names of control tokens in the text as these tokens.
        """
        return self._engine.encode(text, bos, parse_special)

    def detokenize(self, tokens: Tokens, *, show_special: bool = False) -> str:
        """The text of tokens.

        Args:
            tokens: The tokens.
            show_special: Show control tokens by their names; otherwise they give no text.
        """
        return self._engine.decode(tokens, show_special)

    def logits(self, tokens: Tokens) -> numpy.ndarray:
        """The logits after each token, computed in one pass.

        Args:
            tokens: n tokens, at most the context's length.

        Returns:
            A NumPy array `[n, vocab_size]` of `float32`, without a copy: row i predicts token
            i + 1.
        """
        import numpy

        return numpy.asarray(self._engine.logits(tokens))

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        pooling: str | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
    ) -> numpy.ndarray:
        """The vectors of texts, as `bitnet embed` computes them. The texts run together.

        Args:
            texts: A text, or a list of texts.
            pooling: How the hidden states of a text become one vector: `"last"` for the last
                token's, `"mean"` for the mean of all, `"cls"` for the first token's; as the
                model's files say if not given.
            dimensions: Keep this number of values of each vector, the first ones.
            normalize: Scale the vectors to length 1.

        Returns:
            A NumPy array of `float32`, without a copy: `[n, dimensions]` for n texts,
            `[dimensions]` for one text.
        """
        import numpy

        if isinstance(texts, str):
            return self.embed([texts], pooling=pooling, dimensions=dimensions, normalize=normalize)[0]
        return numpy.asarray(self._engine.embed(texts, pooling, dimensions, normalize))

    def perplexity(self, text: str | Tokens, *, context: int | None = None) -> float:
        """How well the model predicts a text: e to the mean of −ln p over its tokens, as `bitnet
        perplexity --documents` measures it for one document.

        Args:
            text: A text, which begins with BOS here, or its tokens. The first token is not
                predicted.
            context: Window in tokens, at least 2; the model's context if not given. Windows over
                a longer text move by half of it.
        """
        tokens = self.tokenize(text, bos=True) if isinstance(text, str) else text
        number, nats = self._engine.likelihood(tokens, context)
        if number == 0:
            from ._errors import RequestError

            raise RequestError("the text is too short: there is no token to predict")
        import math

        return math.exp(nats / number)

    def receipt(self, prompt: str | Tokens, **options: Unpack[Options]) -> Receipt:
        """Runs a request as `generate` does and records it, as `bitnet run --receipt` does. `xtask
        verify-receipt` checks the record, and that another run gives the same tokens.

        The run has an engine of its own, so that it counts nothing else. The files of the model are
        hashed, which takes as long as reading them.

        Args:
            prompt: A text or its tokens.
            options: The keywords of `generate`.

        Returns:
            The receipt as a `dict` with the fields of `docs/receipt.schema.json`. Its `result` is
            the answer.
        """
        import json

        tokens = self.tokenize(prompt) if isinstance(prompt, str) else prompt
        request = self._request(tokens, options)
        whole, text = self._engine.receipt(request, options.get("seed") is not None)
        receipt = Receipt(json.loads(text))
        receipt.text = text
        receipt.result = result(whole, request, *_wanted(options))
        return receipt

    def _request(self, prompt: Tokens, options: Mapping[str, Any]):
        """The native request for one answer."""
        options = {key: value for key, value in options.items() if value is not None}
        if isinstance(stop := options.get("stop"), str):
            options["stop"] = [stop]
        options["seed"] = _seed(options)
        return self._engine.request(prompt, **options)

    def _requests(self, prompt, options: Mapping[str, Any]):
        """The native requests for one prompt or several, and whether it is one."""
        if is_one := _is_one(prompt):
            prompt = [prompt]
        prompts = [self.tokenize(text) if isinstance(text, str) else text for text in prompt]
        return [self._request(tokens, options) for tokens in prompts], is_one

    def _stream_request(self, prompt, options: Mapping[str, Any]):
        """The native request for a prompt or a conversation."""
        is_text = isinstance(prompt, str)
        if not is_text and len(prompt) > 0 and hasattr(prompt[0], "keys"):
            return self._chat_request(prompt, options)
        for name in _CHAT_FIELDS:
            if options.get(name) is not None:
                raise TypeError(f"{name} needs messages as the prompt")
        options = {key: value for key, value in options.items() if key not in _CHAT_FIELDS}
        return self._request(self.tokenize(prompt) if is_text else prompt, options)

    def _chat_request(self, messages, options: Mapping[str, Any]):
        """The native request for a conversation."""
        import json

        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        options = dict(options)
        fields: dict[str, Any] = {"messages": messages}
        for name, field in _CHAT_FIELDS.items():
            value = options.pop(name, None)
            if value is not None:
                fields[field] = _response_format(value) if name == "schema" else value
        if options.get("ignore_eos"):
            fields["ignore_eos"] = True
        chat = self._engine.read_chat(json.dumps(fields))
        if chat.must_call:
            options["stop"] = None
        return self._request(chat.prompt_tokens, {**options, "chat": chat})

    def _wait(self, requests, is_one: bool, options: Mapping[str, Any]):
        wanted = _wanted(options)
        answers = []
        try:
            for request in requests:
                answers.append(self._engine.submit(request))
            results = [
                result(answer.wait(), request, *wanted)
                for answer, request in zip(answers, requests)
            ]
        except BaseException:
            # The traceback keeps the answers alive.
            for answer in answers:
                answer.cancel()
            raise
        return results[0] if is_one else results

    async def _await(self, requests, is_one: bool, options: Mapping[str, Any]):
        wanted = _wanted(options)
        answers = []
        try:
            for request in requests:
                answers.append(self._notices().submit(request, True))
            results = [
                result(await answer.arrival(), request, *wanted)
                for answer, request in zip(answers, requests)
            ]
        except BaseException:
            for answer in answers:
                answer.cancel()
            raise
        return results[0] if is_one else results

    def _notices(self):
        """The way to event loops; made when first used."""
        if self._notifier is None:
            from ._notifier import Notifier

            with self._lock:
                if self._notifier is None:
                    self._notifier = Notifier(self._engine)
        return self._notifier


_CHAT_FIELDS = {
    "tools": "tools",
    "tool_choice": "tool_choice",
    "parallel_tool_calls": "parallel_tool_calls",
    "schema": "response_format",
    "thinking_budget": "thinking_token_budget",
    "template_variables": "chat_template_kwargs",
}
"""The keywords of conversations, and their names in `/v1/chat/completions`."""


def _response_format(schema) -> dict[str, Any]:
    """A schema as OpenAI's API takes it."""
    if hasattr(schema, "model_json_schema"):
        schema = schema.model_json_schema()
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def _seed(options: Mapping[str, Any]) -> int:
    """The seed that the caller chose, or one that is drawn."""
    if (seed := options.get("seed")) is not None:
        return seed
    # 53 bits survive readers of JSON.
    return int.from_bytes(os.urandom(8), "little") >> 11


def _wanted(options: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether results have log-probabilities, of the answer and of the prompt."""
    return options.get("logprobs") is not None, bool(options.get("prompt_logprobs"))


async def _in_thread(work, *arguments):
    """Runs work that may take long, so that the loop goes on."""
    import asyncio

    return await asyncio.to_thread(work, *arguments)


def _is_one(prompt) -> bool:
    """Whether a prompt is one text or one list of tokens, not a list of prompts."""
    if isinstance(prompt, str):
        return True
    return len(prompt) > 0 and hasattr(prompt[0], "__index__") and not hasattr(prompt[0], "__len__")


def _short(number: int) -> str:
    """`2.08 B` for 2084 million."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
