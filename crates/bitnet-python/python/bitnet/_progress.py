"""A bar that shows how far a model is loaded."""

from __future__ import annotations

import sys
import time

# Seconds before a bar is shown, and between two changes of it.
DELAY_S = 0.5
PAUSE_S = 0.1
WIDTH = 30


class LoadBar:
    """A context in which a model is loaded. Its bar disappears at the end.

    is_shown: true to show a bar on standard error, false for none; `None` for one on a terminal
    and in notebooks.
    """

    def __init__(self, source: str | None, is_shown: bool | None) -> None:
        self._name = source or "built-in story-teller"
        self._draw = _drawing(is_shown)
        self._next = time.monotonic() + DELAY_S
        self._is_drawn = False

    def __enter__(self) -> LoadBar:
        return self

    def show(self, done: int, total: int) -> None:
        """Shows that `done` of `total` layers are loaded."""
        now = time.monotonic()
        if self._draw is None or total == 0 or now < self._next:
            return
        self._next = now + PAUSE_S
        self._is_drawn = True
        full = WIDTH * done // total
        bar = "█" * full + "░" * (WIDTH - full)
        self._draw(f"loading {self._name} {bar} {done} of {total} layers")

    def __exit__(self, *_exception: object) -> None:
        if self._draw is not None and self._is_drawn:
            self._draw("")


def _drawing(is_shown: bool | None):
    """The function that draws a line over the last one; `None` to draw nothing."""
    if is_shown is False:
        return None
    if (display := _notebook_display()) is not None:
        return display
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    return _draw_on_terminal if is_terminal or is_shown else None


def _draw_on_terminal(line: str) -> None:
    # To the first column, the line, and clear the rest.
    sys.stderr.write(f"\r{line}\x1b[K")
    sys.stderr.flush()


def _notebook_display():
    """The function that draws in a notebook; `None` outside notebooks."""
    # A notebook has loaded IPython, and its shell talks to a kernel.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display  # type: ignore[import-not-found]

    handles = []

    def draw(line: str) -> None:
        bundle = {"text/plain": line}
        if handles:
            handles[0].update(bundle, raw=True)
        else:
            handles.append(display(bundle, raw=True, display_id=True))

    return draw
