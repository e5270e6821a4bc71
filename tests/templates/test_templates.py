"""Our chat templates against jinja2 as transformers sets it up: texts must be equal.

The public templates come from released packages; none is in this repository. Those in `written` are ours, in the
styles of public models.
"""

import os
import pathlib
import subprocess

import pytest

import compare
import packages
from jinja import Ours

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def ours():
    """The example `render_chats`, built and running. RENDER_CHATS names one that is built."""
    program = os.environ.get("RENDER_CHATS")
    if program is None:
        command = ["cargo", "build", "--release", "--locked", "-p", "bitnet-tokenizers"]
        subprocess.run([*command, "--example", "render_chats"], cwd=ROOT, check=True)
        target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
        program = target / "release/examples/render_chats"
    return Ours(program)


def test_constructs_render_as_in_jinja2(ours):
    assert compare.compare_constructs(ours) == 0


def test_public_templates_render_as_in_transformers(ours, tmp_path):
    public = [*packages.download(tmp_path), compare.transformers()]
    assert compare.compare_templates(ours, public) == 0


def test_written_templates_render_as_in_transformers(ours):
    written = pathlib.Path(__file__).parent / "written"
    assert len(list(written.iterdir())) == 20
    assert compare.compare_templates(ours, [written]) == 0
