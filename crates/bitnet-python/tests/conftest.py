"""The built-in model, and the program to compare with: BITNET, or the one in the package."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import bitnet

ROOT = pathlib.Path(__file__).parents[3]
PROGRAM = [os.environ["BITNET"]] if "BITNET" in os.environ else [sys.executable, "-m", "bitnet"]


@pytest.fixture(scope="session")
def model():
    return bitnet.load()


@pytest.fixture(scope="session")
def program():
    """Runs the program with arguments; returns its JSON, or its message if it fails."""

    def run(*arguments, text=None, fails=False):
        command = [*PROGRAM, *map(str, arguments)]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stderr
        return done.stderr.strip() if fails else json.loads(done.stdout)

    return run
