"""The program `bitnet` inside this package."""

from __future__ import annotations

import os
import sys


def command(*arguments: str, ends_with_input: bool = False) -> list[str]:
    """The command that runs the program in a process of its own, with this Python and this package.
    The environment and the current folder do not change which.

    ends_with_input: the process gets SIGTERM when its standard input ends.
    """
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = (
        f"import sys; sys.path.insert(0, {folder!r}); "
        f"from bitnet.__main__ import main; main({ends_with_input})"
    )
    return [sys.executable or "", "-I", "-c", code, *arguments]
