"""A `bitnet serve` with the built-in model for the clients. BITNET is the program; target/release/bitnet if not set."""

import contextlib
import os
import pathlib
import subprocess
import time
import urllib.error
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BITNET = os.environ.get("BITNET", str(ROOT / "target/release/bitnet"))


@contextlib.contextmanager
def serving(*arguments):
    """Starts a server, waits until it is ready, gives its address, stops it and sees to it that it drains."""
    command = [BITNET, "serve", "--port", "0", "--log-format", "json", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on "), line
        url = line.removeprefix("listening on ").strip()
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(url + "/readyz").close()
                break
            except urllib.error.HTTPError:
                assert time.monotonic() < deadline, "the server does not become ready"
                time.sleep(0.02)
        yield url
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0, "the server did not drain"


@pytest.fixture(scope="session")
def url():
    with serving() as url:
        yield url
