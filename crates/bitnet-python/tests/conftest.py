"""The built-in model, and the program to compare with. BITNET is the program; target/release/bitnet if not set."""

import json
import os
import pathlib
import subprocess

import pytest

import bitnet

ROOT = pathlib.Path(__file__).parents[3]
BITNET = os.environ.get("BITNET", str(ROOT / "target/release/bitnet"))


@pytest.fixture(scope="session")
def model():
    return bitnet.load()


@pytest.fixture(scope="session")
def program():
    """Runs the program with arguments; returns its JSON, or its message if it fails."""

    def run(*arguments, text=None, fails=False):
        command = [BITNET, *map(str, arguments)]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr.strip() if fails else json.loads(done.stdout)

    return run
