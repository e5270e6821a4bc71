"""Ray Data: rows get the same texts from any number of actors, and none is lost or there twice."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

import bitnet

ray = pytest.importorskip("ray")  # requirements-ray.txt has it

import numpy
import pyarrow.parquet

import bitnet.ray

ROWS = [
    {"id": index, "prompt": f"The {animal}"}
    for index, animal in enumerate(["cat", "dog", "bird"] * 8)
]
PATIENCE = 300


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def texts(rows, actors, batch_size):
    """The texts that Ray gives to rows, by key."""
    dataset = (
        ray.data.from_items(rows)
        .repartition(4)
        .map_batches(
            bitnet.ray.Generator,
            fn_constructor_kwargs={"max_tokens": 12, "load_options": {"threads": 1}},
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            batch_size=batch_size,
        )
    )
    return {row["id"]: row["text"] for row in dataset.take_all()}


def finished(folder):
    """The rows of a folder of answers; fails if a key is there twice."""
    rows = pyarrow.parquet.read_table(folder).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["text"] for row in rows}


def alone(rows, **options):
    """The texts of rows from one model without Ray."""
    generator = bitnet.ray.Generator(**options)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return dict(zip(columns["id"], generator(columns)["text"]))


def test_actors_batches_and_order_change_no_text(cluster):
    expected = texts(ROWS, 1, 24)
    assert sorted(expected) == list(range(len(ROWS)))
    assert texts(ROWS[::-1], 2, 5) == expected
    assert len(set(expected.values())) > len(ROWS) // 2


def test_a_row_has_the_text_of_its_seed():
    model = bitnet.load()
    generator = bitnet.ray.Generator(max_tokens=12, seed=3)
    batch = {"id": numpy.array([7, 8]), "prompt": numpy.array(["The cat", "The cat"])}
    out = generator(batch)
    assert out["prompt"] is batch["prompt"]
    for key, text in zip((7, 8), out["text"]):
        assert text == model.generate("The cat", max_tokens=12, seed=bitnet.ray.row_seed(3, key))
    assert out["text"][0] != out["text"][1]
    table = pyarrow.table({"id": [7, 8], "prompt": ["The cat"] * 2})
    assert generator(table)["text"].to_pylist() == out["text"]


def test_an_embedder_adds_the_vectors_of_the_model():
    from conftest import ROOT

    path = ROOT / "tests/data/golden-graphs/qwen3-embedding/model.gguf"
    embedder = bitnet.ray.Embedder(path, load_options={"ctx_size": 64}, dimensions=4)
    expected = bitnet.load(path, ctx_size=64).embed(["ab", "c"], dimensions=4)
    out = embedder({"text": numpy.array(["ab", "c"])})
    assert (out["embedding"] == expected).all()
    table = embedder(pyarrow.table({"text": ["ab", "c"]}))
    assert table["embedding"].to_pylist() == expected.tolist()


def test_a_missing_column_is_named():
    generator = bitnet.ray.Generator(prompt="question", max_tokens=1)
    with pytest.raises(bitnet.RequestError, match="no column 'question' among 'id', 'prompt'"):
        generator({"id": [1], "prompt": ["Hi"]})


def test_an_actor_has_the_threads_that_ray_gives_it(cluster):
    @ray.remote(num_cpus=2)
    class Actor:
        def threads(self):
            return bitnet.ray.Generator()._model.info["threads"]

    assert ray.get(Actor.remote().threads.remote()) == 2


def test_a_second_run_generates_the_rows_that_are_missing(cluster, tmp_path):
    output, options = tmp_path / "answers", {"max_tokens": 12, "batch_size": 5}
    first = ray.data.from_items(ROWS[:10])
    assert bitnet.ray.generate(first, output, **options) == 10
    before = {part: part.stat().st_mtime_ns for part in output.iterdir()}
    assert bitnet.ray.generate(ray.data.from_items(ROWS), output, actors=2, **options) == 14
    assert {part: part.stat().st_mtime_ns for part in before} == before
    assert finished(output) == alone(ROWS, max_tokens=12)
    assert bitnet.ray.generate(ray.data.from_items(ROWS), output, **options) == 0
    assert not [path for path in output.iterdir() if path.name.startswith("_")]


def test_a_key_that_is_there_twice_is_an_error(cluster, tmp_path):
    rows = ray.data.from_items([*ROWS[:3], ROWS[1]])
    with pytest.raises(bitnet.Error, match="4 rows were generated, .* 3 different keys"):
        bitnet.ray.generate(rows, tmp_path / "answers", max_tokens=2)


def test_a_run_that_another_has_taken_over_writes_no_more(tmp_path):
    folder = bitnet.ray._Folder(tmp_path / "answers", "id")
    writer = bitnet.ray._Writer(str(folder.begin_run()), None, max_tokens=2)
    batch = pyarrow.table({"id": [1], "prompt": ["Hi"]})
    assert writer(batch) == {"rows": [1]}
    folder.accept_earlier_runs()
    assert sorted(finished(tmp_path / "answers")) == [1]
    with pytest.raises(bitnet.Error, match="another run has taken over"):
        writer(pyarrow.table({"id": [2], "prompt": ["Hi"]}))


def test_rows_over_http_have_the_texts_of_the_generator(cluster):
    from ray.data.llm import HttpRequestProcessorConfig, build_processor

    with bitnet.serve(threads=1) as server:
        config = HttpRequestProcessorConfig(
            url=f"{server.base_url}/completions", concurrency=1, batch_size=8, qps=1000
        )
        processor = build_processor(
            config,
            preprocess=lambda row: {
                "payload": {
                    "prompt": row["prompt"],
                    "max_tokens": 12,
                    "seed": bitnet.ray.row_seed(0, row["id"]),
                }
            },
            postprocess=lambda row: {
                "id": row["id"],
                "text": row["http_response"]["choices"][0]["text"],
            },
        )
        rows = processor(ray.data.from_items(ROWS)).take_all()
    assert {row["id"]: row["text"] for row in rows} == alone(ROWS, max_tokens=12)


def writers():
    """The processes of actors that write."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if name.startswith(b"ray::MapWorker") and b"_Writer" in name:
            found.append(int(process.name))
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="needs Linux's /proc")
def test_killed_actors_lose_no_row_and_repeat_none(cluster, tmp_path):
    output = tmp_path / "answers"
    rows = [{"id": index, "prompt": "The cat"} for index in range(200)]
    num_kills, is_done = [], threading.Event()

    def kill():
        """Kills an actor at a random moment after each further file."""
        before = 0
        while len(num_kills) < 3 and not is_done.wait(0.01):
            written = len(list(output.glob("_run-*/part-*")))
            if written > before and (found := writers()):
                before = written
                time.sleep(random.random() / 10)
                os.kill(random.choice(found), signal.SIGKILL)
                num_kills.append(written)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        dataset = ray.data.from_items(rows).repartition(20)
        options = {"batch_size": 5, "max_tokens": 40, "load_options": {"threads": 1}}
        count = bitnet.ray.generate(dataset, output, actors=2, **options)
    finally:
        is_done.set()
        killer.join()
    assert len(num_kills) > 0
    assert count == 200 and finished(output) == alone(rows, max_tokens=40)


DRIVER = """
import sys
import ray
ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
import bitnet.ray
rows = [{"id": index, "prompt": "The cat"} for index in range(int(sys.argv[2]))]
# Few blocks: Ray's own work for a block takes long on a busy machine.
dataset = ray.data.from_items(rows).repartition(8)
print("started", flush=True)
bitnet.ray.generate(dataset, sys.argv[1], actors=2, batch_size=10, max_tokens=20)
print("finished", flush=True)
"""


def driver(output, num_rows):
    """A driver that runs. On a busy machine Ray may give up its own start; then another follows."""
    command = [sys.executable, "-c", DRIVER, str(output), str(num_rows)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    for _ in range(3):
        process = subprocess.Popen(command, **pipes)
        if process.stdout.readline() == "started\n":
            return process
        end(process)
    raise AssertionError("Ray does not start")


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


def num_files(output):
    """The number of files with answers, finished or not."""
    return len(list(output.glob("part-*"))) + len(list(output.glob("_*/part-*")))


def kill_and_restart(output, num_rows, num_kills):
    """Kills an actor or the driver at a random moment after each further file, in turns; starts
    the driver again in the same folder. Returns the last driver, which runs."""
    running = driver(output, num_rows)
    try:
        for kill in range(num_kills):
            before, deadline = num_files(output), time.monotonic() + PATIENCE
            while num_files(output) <= before or not (found := writers()):
                assert running.poll() is None, "the driver ended before it was killed"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(random.random() / 2)
            if kill % 2 == 0:
                os.kill(random.choice(found), signal.SIGKILL)
            else:
                end(running)
                running = driver(output, num_rows)
    except BaseException:
        end(running)
        raise
    return running


@pytest.mark.skipif(not os.path.exists("/proc/self/cmdline"), reason="needs Linux's /proc")
def test_killed_actors_and_drivers_lose_no_row_and_repeat_none(tmp_path):
    num_kills = int(os.environ.get("BITNET_RAY_KILLS", "2"))
    output, num_rows = pathlib.Path(tmp_path / "answers"), 100 * (num_kills + 1)
    with kill_and_restart(output, num_rows, num_kills) as last:
        assert last.stdout.read().splitlines()[-1] == "finished"
    rows = [{"id": index, "prompt": "The cat"} for index in range(num_rows)]
    assert finished(output) == alone(rows, max_tokens=20)
