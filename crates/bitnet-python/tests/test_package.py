"""The package: types, names, imports."""

import importlib.metadata
import inspect
import pathlib
import subprocess
import sys

import bitnet
from conftest import ROOT


def test_import_loads_neither_numpy_nor_asyncio():
    code = "import sys, bitnet; print([m for m in ('numpy', 'asyncio', 'json') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_the_distributions():
    assert bitnet.__version__ == importlib.metadata.version("bitnet-rs")


def test_every_public_name_says_what_it_is():
    for name in bitnet.__all__:
        if name == "__version__":
            continue
        thing = getattr(bitnet, name)
        assert inspect.getdoc(thing), name
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            if inspect.isfunction(value) and not member.startswith("_"):
                assert inspect.getdoc(value), f"{name}.{member}"


def test_types_are_marked_and_hold(tmp_path):
    folder = pathlib.Path(bitnet.__file__).parent
    assert (folder / "py.typed").is_file() and (folder / "_native.pyi").is_file()
    commands = [
        ["mypy", "-p", "bitnet", "--ignore-missing-imports"],
        ["mypy.stubtest", "bitnet._native", "--ignore-disjoint-bases"],
    ]
    for command in commands:
        command = [sys.executable, "-m", *command]
        # mypy leaves a folder where it runs.
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_capacity_in_the_documentation_follows_from_the_measurements():
    script = ROOT / "crates/bitnet-python/benches/capacity.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
