"""The way from the engine's thread to event loops: one waiting thread for each model."""

from __future__ import annotations

import asyncio
import itertools
import threading
import weakref


class Notifier:
    """Starts requests for event loops, and wakes the loops when replies arrive."""

    def __init__(self, engine) -> None:
        self._engine = engine
        self._ids = itertools.count()
        notices = engine.notices()
        # Only tasks hold their answers, so that dropping one cancels its request.
        answers: weakref.WeakValueDictionary[int, PolledAnswer] = weakref.WeakValueDictionary()
        self._answers = answers
        thread = threading.Thread(
            target=_wake, args=(notices, answers), name="bitnet-notices", daemon=True
        )
        thread.start()
        # With the model, and at the latest before the interpreter ends: a thread that waits in
        # native code must not outlive it.
        self.close = weakref.finalize(self, _close, notices, thread)

    def submit(self, request, is_whole: bool) -> PolledAnswer:
        """Starts a request from a task; `is_whole`: only its end is awaited."""
        number = next(self._ids)
        native = self._engine.submit_polled(request, number, is_whole)
        answer = PolledAnswer(self, native, is_whole)
        # The task looks once before it waits for a notice.
        self._answers[number] = answer
        return answer


class PolledAnswer:
    """An answer that a task waits for."""

    def __init__(self, notifier: Notifier, native, is_whole: bool) -> None:
        # A model may go while an answer is awaited, but not the thread that wakes the task.
        self._notifier = notifier
        self._native = native
        self._poll = native.poll_whole if is_whole else native.poll
        self.loop = asyncio.get_running_loop()
        self._event = asyncio.Event()

    async def arrival(self):
        """The next piece, or the whole answer, as a native tuple."""
        while True:
            # Cleared first: mail that arrives after the look sets it again.
            self._event.clear()
            if (arrived := self._poll()) is not None:
                return arrived
            await self._event.wait()

    def wake(self) -> None:
        """Has the task look again. Called in its loop."""
        self._event.set()

    def cancel(self) -> None:
        """Cancels the request."""
        self._native.cancel()


def _wake(notices, answers) -> None:
    while (numbers := notices.wait()) is not None:
        for number in numbers:
            answer = answers.get(number)
            if answer is None:
                continue
            try:
                answer.loop.call_soon_threadsafe(answer.wake)
            except RuntimeError:  # the loop is closed
                answer.cancel()
        answer = None


def _close(notices, thread) -> None:
    notices.close()
    if thread is not threading.current_thread():
        thread.join()
