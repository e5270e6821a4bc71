"""Answers that arrive piece by piece."""

from __future__ import annotations

from ._results import Piece, end, piece


class Stream:
    """The pieces of an answer, as they are generated. Iterate over it once.

    `close`, leaving a `with` block, and garbage collection cancel the rest of the answer.
    """

    def __init__(self, answer, request) -> None:
        self._answer = answer
        self._request = request
        self._text = ""
        self.seed: int = request.seed
        """The seed: the same request with it gives the same text."""

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        answer = self._answer
        native = answer.next() if answer is not None else None
        if native is None:
            self._answer = None
            raise StopIteration
        out = piece(native)
        self._text += out
        if out.finish_reason is not None:
            end(out, self._text, self._request)
        return out

    def close(self) -> None:
        """Cancels the rest of the answer."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class AsyncStream:
    """The pieces of an answer, as they are generated, for `async for`.

    The request starts at the first piece. `aclose`, leaving an `async with` block, cancelling the
    task and garbage collection cancel the rest of the answer.
    """

    def __init__(self, start, seed: int) -> None:
        self._start = start
        self._answer = None
        self._request = None
        self._text = ""
        self.seed = seed
        """The seed: the same request with it gives the same text."""

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Piece:
        if self._start is not None:
            start, self._start = self._start, None
            self._answer, self._request = await start()
        if self._answer is None:
            raise StopAsyncIteration
        try:
            out = piece(await self._answer.arrival())
        except BaseException:
            await self.aclose()
            raise
        self._text += out
        if out.finish_reason is not None:
            self._answer = None
            end(out, self._text, self._request)
        return out

    async def aclose(self) -> None:
        """Cancels the rest of the answer."""
        self._start = None
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.cancel()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.aclose()
