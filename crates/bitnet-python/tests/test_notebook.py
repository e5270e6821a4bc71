"""A newcomer's notebook, run by a real kernel."""

import pytest

nbclient = pytest.importorskip("nbclient")  # requirements-notebook.txt has it
nbformat = pytest.importorskip("nbformat")

CELLS = [
    # The lines of the README, with the built-in model.
    """import bitnet

model = bitnet.load()
print(model.generate("The capital of France is", max_tokens=20, seed=1))""",
    "model",
    "model.generate('Once upon a time', max_tokens=5, seed=1)",
    "for piece in model.stream('Once upon a time', max_tokens=5, seed=1): print(piece, end='')",
    # A notebook has an event loop of its own.
    "print(await model.agenerate('Once upon a time', max_tokens=5, seed=1))",
    "model.logits(model.tokenize('Once')).shape",
    """from bitnet import _progress

bar = _progress.LoadBar("m.gguf", None)
bar._next = 0
with bar:
    bar.show(3, 6)
    print("shown")""",
    """with bitnet.serve(threads=1) as server:
    import urllib.request
    print(urllib.request.urlopen(server.url + "/readyz").status)""",
    "bitnet.load('no-such-file.gguf')",
]


@pytest.fixture(scope="module")
def cells():
    """The cells after a run."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS])
    client = nbclient.NotebookClient(notebook, timeout=120, allow_errors=True, kernel_name="python3")
    return client.execute().cells


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def value(cell):
    [output] = [o for o in cell.outputs if o.output_type == "execute_result"]
    return output.data["text/plain"]


def test_the_lines_of_the_readme_print_a_text(cells):
    assert len(printed(cells[0])) > 20


def test_a_model_and_a_result_show_what_they_are(cells):
    assert value(cells[1]).startswith("<bitnet.Model 'BitNet stories'")
    assert printed(cells[3]).strip() in value(cells[2])


def test_streams_and_tasks_print_the_same_text(cells):
    assert printed(cells[3]).strip() != ""
    assert printed(cells[4]) == printed(cells[3]) + "\n"


def test_logits_are_an_array(cells):
    assert value(cells[5]).startswith("(")


def test_a_bar_is_an_output_of_its_own_that_is_empty_at_the_end(cells):
    assert printed(cells[6]) == "shown\n"
    [bar] = [o for o in cells[6].outputs if o.output_type == "display_data"]
    assert bar.data == {"text/plain": ""}


def test_a_server_runs_beside_the_notebook(cells):
    assert printed(cells[7]) == "200\n"


def test_an_error_ends_the_cell_with_its_text(cells):
    [error] = [output for output in cells[8].outputs if output.output_type == "error"]
    assert error.ename == "ModelNotFoundError" and "no-such-file.gguf" in error.evalue
