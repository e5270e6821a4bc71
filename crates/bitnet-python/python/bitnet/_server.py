"""A server in a process of its own, for tests and notebooks."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from ._errors import EngineError
from ._program import command

if TYPE_CHECKING:
    from typing import Any

# Lines of the log that are kept.
LOG_LINES_MAX = 200


def serve(
    model: str | os.PathLike[str] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    timeout_s: float = 600.0,
    **options: Any,
) -> Server:
    """Starts `bitnet serve` in a process of its own, and waits until it answers.

    >>> with bitnet.serve("2b4t") as server:
    ...     client = openai.OpenAI(base_url=server.base_url, api_key="none")

    The server ends with `Server.stop`, with its `with` block, and with this process.

    Args:
        model: As for `load`.
        host: The address to listen on.
        port: The port; 0 for a free one.
        timeout_s: Seconds to wait for the model.
        options: Options of `bitnet serve`, such as `threads=4`, `lenient=True` or
            `model_name=["a", "b"]`.

    Raises:
        EngineError: The server has ended or does not answer in time; the error has the end of its
            log.
    """
    arguments = ["serve", f"--host={host}", f"--port={port}"]
    if model is not None:
        arguments.append(f"--model={os.fspath(model)}")
    for name, value in options.items():
        arguments.extend(_option(name, value))
    server = Server(arguments)
    try:
        server._wait_until_ready(timeout_s)
    except BaseException:
        server.stop()
        raise
    return server


class Server:
    """A running server. `serve` starts it."""

    url: str
    """The address, such as `"http://127.0.0.1:8080"`."""

    def __init__(self, arguments: list[str]) -> None:
        import collections
        import subprocess

        # The end of this process, however it ends, closes the pipe, and the server stops. Ctrl-C on
        # a terminal reaches this process only.
        self._process = subprocess.Popen(
            command(*arguments, ends_with_input=True),
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._log: collections.deque[str] = collections.deque(maxlen=LOG_LINES_MAX)
        self._reader = threading.Thread(
            target=_keep, args=(self._process.stderr, self._log), name="bitnet-log", daemon=True
        )
        self._reader.start()

    @property
    def base_url(self) -> str:
        """The address of OpenAI's API, for its clients."""
        return f"{self.url}/v1"

    @property
    def log(self) -> str:
        """The last lines of the server's log."""
        return "".join(self._log)

    def stop(self, timeout_s: float = 60.0) -> None:
        """Ends the server after the requests under way, and kills it after `timeout_s` seconds."""
        import subprocess

        process = self._process
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self._process.poll() is None else "stopped"
        return f"<bitnet.Server {self.url} ({state})>"

    def _wait_until_ready(self, timeout_s: float) -> None:
        import time

        deadline = time.monotonic() + timeout_s
        # The first line is the address, before the model is loaded.
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        mark = "listening on "
        if not line.startswith(mark):
            self._process.wait()
            raise self._ended("the server has not started")
        self.url = line.removeprefix(mark).strip()
        while not self._is_ready():
            if self._process.poll() is not None:
                raise self._ended("the server has ended")
            if time.monotonic() > deadline:
                raise self._ended(f"the server does not answer after {timeout_s} s")
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        import urllib.request

        # No proxy of the environment.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.url}/readyz", timeout=10):
                return True
        except OSError:
            return False

    def _ended(self, problem: str) -> EngineError:
        if self._process.poll() is not None:
            self._reader.join()
        last = self.log.strip().splitlines()[-5:]
        return EngineError(": ".join([problem, "\n".join(last).removeprefix("error: ")]))


def _option(name: str, value: Any) -> list[str]:
    """An option of the program for a keyword."""
    flag = "--" + name.replace("_", "-")
    if value is True:
        return [flag]
    if value is False or value is None:
        return []
    values = value if isinstance(value, (list, tuple)) else [value]
    return [f"{flag}={os.fspath(one) if hasattr(one, '__fspath__') else one}" for one in values]


def _keep(pipe, lines) -> None:
    """Keeps the last lines of a pipe until it ends."""
    for line in pipe:
        lines.append(line)
