"""The program `bitnet`: `python -m bitnet --help`."""

import os
import signal
import sys
import threading

from . import _native
from ._program import command


def main(ends_with_input: bool = False) -> None:
    """Runs the program with the arguments of this process, and ends the process.

    ends_with_input: send SIGTERM to this process when its standard input ends.
    """
    # The program has its own handler of Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if ends_with_input:
        threading.Thread(target=_end_with_input, daemon=True).start()
    code = _native.__file__
    sys.exit(_native.main(["bitnet", *sys.argv[1:]], code, command()))


def _end_with_input() -> None:
    # Without Python's buffer, whose lock would stop the interpreter's end.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
