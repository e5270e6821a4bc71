"""The native half of the package; not part of its interface."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

__all__ = [
    "Answer",
    "Chat",
    "Engine",
    "FloatArray",
    "Notices",
    "PolledAnswer",
    "Request",
    "__version__",
    "main",
]
__version__: str

_Logprobs = tuple[float, list[tuple[int, float]]]
_Timings = tuple[int, int, int, float, float, float]
_Finish = tuple[str, _Timings]
_Piece = tuple[str, int | None, _Logprobs | None, _Finish | None]
_Whole = tuple[str, list[int], list[_Logprobs], _Finish, list[_Logprobs]]
_ChatAnswer = tuple[str, str, list[tuple[str, str, str]], bool]

def main(arguments: Sequence[str], code: str, again: Sequence[str]) -> int: ...

@final
class Answer:
    def wait(self) -> _Whole: ...
    def next(self) -> _Piece | None: ...
    def cancel(self) -> None: ...

@final
class PolledAnswer:
    def poll(self) -> _Piece | None: ...
    def poll_whole(self) -> _Whole | None: ...
    def cancel(self) -> None: ...

@final
class Notices:
    def wait(self) -> list[int] | None: ...
    def close(self) -> None: ...

@final
class Request:
    @property
    def seed(self) -> int: ...
    @property
    def prompt_tokens(self) -> list[int]: ...
    def read(self, text: str) -> _ChatAnswer | None: ...

@final
class Chat:
    @property
    def text(self) -> str: ...
    @property
    def prompt_tokens(self) -> list[int]: ...
    @property
    def must_call(self) -> bool: ...

@final
class FloatArray:
    @property
    def __array_interface__(self) -> dict[str, Any]: ...

@final
class Engine:
    @staticmethod
    def load(
        source: str | None,
        *,
        program: Sequence[str],
        device: str = "cpu",
        threads: int | None = None,
        ctx_size: int | None = None,
        kv_type: str = "f16",
        kv_memory: int | None = None,
        parallel: int | None = None,
        draft: int | None = None,
        chat_template: str | None = None,
        i2_s_form: str = "block128",
        progress: Callable[[int, int], object] | None = None,
    ) -> Engine: ...
    @property
    def warnings(self) -> list[str]: ...
    def info(self) -> dict[str, Any]: ...
    def encode(self, text: str, bos: bool | None, parse_special: bool) -> list[int]: ...
    def read_chat(self, fields: str) -> Chat: ...
    def decode(self, tokens: Sequence[int], show_special: bool) -> str: ...
    def request(
        self,
        prompt: Sequence[int],
        *,
        seed: int,
        max_tokens: int | None = None,
        min_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        repeat_penalty: float | None = None,
        repeat_last_n: int | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        logit_bias: Mapping[int, float] | None = None,
        stop: Sequence[str] = ...,
        ignore_eos: bool = False,
        logprobs: int | None = None,
        prompt_logprobs: bool = False,
        chat: Chat | None = None,
    ) -> Request: ...
    def submit(self, request: Request) -> Answer: ...
    def submit_polled(self, request: Request, id: int, is_whole: bool) -> PolledAnswer: ...
    def receipt(self, request: Request, seed_given: bool) -> tuple[_Whole, str]: ...
    def lose_device(self) -> None: ...
    def notices(self) -> Notices: ...
    def logits(self, tokens: Sequence[int]) -> FloatArray: ...
    def embed(
        self,
        texts: Sequence[str],
        pooling: str | None,
        dimensions: int | None,
        is_normalized: bool,
    ) -> FloatArray: ...
    def likelihood(self, tokens: Sequence[int], context: int | None) -> tuple[int, float]: ...
