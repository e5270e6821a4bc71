"""A `bitnet serve` with the built-in model for the clients. BITNET is the program; target/release/bitnet if not set."""

import contextlib
import os
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).parents[2]
BITNET = os.environ.get("BITNET", str(ROOT / "target/release/bitnet"))
# A tiny model for embeddings.
EMBEDDING_MODEL = str(ROOT / "tests/data/golden-graphs/qwen3-embedding/model.gguf")
# Where Hypothesis, below Schemathesis, keeps what it found.
os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(ROOT / "target/hypothesis")
# Seconds that anything may take to come about, on a machine that has other things to do.
PATIENCE = 300

# A message that the built-in model continues, a schema, and a tool, for every client.
MESSAGES = [{"role": "user", "content": "Once upon a time"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 10}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


def is_person(value):
    return sorted(value) == ["age", "name"] and len(value["name"]) <= 12 and 0 <= value["age"] <= 99


def is_weather(arguments):
    return sorted(arguments) == ["city", "days"] and len(arguments["city"]) <= 10 and 1 <= arguments["days"] <= 9


def wait_until(what, is_so):
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline, f"not {what} after {PATIENCE} s"
        time.sleep(0.02)


def status(url):
    """The status of an answer; None if there is none."""
    try:
        with urllib.request.urlopen(url) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A `bitnet serve` of our own, ready."""

    def __init__(self, *arguments, port=0, environment={}):
        command = [BITNET, "serve", "--port", str(port), "--log-format", "json", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | environment)
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), line
        self.url = line.removeprefix("listening on ").strip()
        wait_until("ready", lambda: status(self.url + "/readyz") == 200)

    def stop(self):
        """Sees to it that the server drains."""
        self.process.terminate()
        assert self.process.wait(timeout=PATIENCE) == 0, "the server did not drain"

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None and self.process.poll() is None:
            self.stop()
        self.process.kill()
        self.process.wait()

    def metrics(self):
        """Samples of /metrics by name and labels, as they are written."""
        with urllib.request.urlopen(self.url + "/metrics") as response:
            lines = response.read().decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


@pytest.fixture(scope="session")
def url():
    with Server() as server:
        yield server.url
