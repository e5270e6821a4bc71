"""The bar of a load: on terminals, in notebooks, and nowhere else."""

import io
import sys
import types

from bitnet import _progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show(bar):
    """Shows 3 of 6 layers, without the delay."""
    with bar:
        bar._next = 0
        bar.show(3, 6)


def test_a_terminal_shows_a_bar_and_clears_it(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show(_progress.LoadBar("m.gguf", None))
    half = _progress.WIDTH // 2
    bar = "█" * half + "░" * half
    assert terminal.getvalue() == f"\rloading m.gguf {bar} 3 of 6 layers\x1b[K\r\x1b[K"


def test_a_quick_load_shows_nothing(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with _progress.LoadBar(None, None) as bar:
        bar.show(3, 6)
    assert terminal.getvalue() == ""


def test_a_pipe_shows_a_bar_only_if_asked(monkeypatch):
    for is_shown, shows in [(None, False), (False, False), (True, True)]:
        pipe = io.StringIO()
        monkeypatch.setattr(sys, "stderr", pipe)
        show(_progress.LoadBar(None, is_shown))
        assert ("3 of 6 layers" in pipe.getvalue()) == shows


def test_a_notebook_shows_one_bar_that_changes(monkeypatch):
    shown = []
    handle = types.SimpleNamespace(update=lambda bundle, raw: shown.append(("update", bundle, raw)))

    def display(bundle, raw, display_id):
        shown.append(("display", bundle, raw))
        return handle

    shell = types.SimpleNamespace(kernel=object())
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    module = types.ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    show(_progress.LoadBar("m.gguf", None))
    assert [kind for kind, _, _ in shown] == ["display", "update"]
    assert "3 of 6 layers" in shown[0][1]["text/plain"] and shown[1][1] == {"text/plain": ""}
