"""Generation over datasets of any size with Ray Data: an engine in each actor.

`generate` writes the answers to a folder and goes on where an earlier run was ended:

    import bitnet.ray, ray

    dataset = ray.data.read_parquet("prompts/")  # columns `id` and `prompt`
    bitnet.ray.generate(dataset, "answers/", "2b4t", max_tokens=64, actors=4, cpus=8)

`Generator` is the class below it, for pipelines of your own:

    dataset = dataset.map_batches(
        bitnet.ray.Generator,
        fn_constructor_kwargs={"model": "2b4t", "max_tokens": 64},
        compute=ray.data.ActorPoolStrategy(size=4),
        num_cpus=8,
        batch_size=256,
    )
    dataset.write_parquet("answers/")  # and a column `text`
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import uuid
from typing import TYPE_CHECKING

from ._errors import Error, ModelNotFoundError, RequestError
from ._model import Model, load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    import pyarrow
    import ray
    import ray.data

__all__ = ["Embedder", "Generator", "generate", "row_seed"]


class Generator:
    """A class for `Dataset.map_batches`: adds a column with the continuation of each prompt.

    The text of a row depends on its prompt, its key and the arguments only: the number of actors,
    batches, order and retries change nothing.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        prompt: str = "prompt",
        key: str = "id",
        text: str = "text",
        seed: int = 0,
        load_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            model: A model as for `bitnet.load`. A name that is not pulled is pulled, once a node.
                Each actor loads the model.
            prompt: The column with the prompts: texts, or lists of tokens.
            key: The column with the keys of the rows: whole numbers or texts, each once.
            text: The column to add.
            seed: With a row's key it gives the seed of the row: see `row_seed`.
            load_options: The keywords of `bitnet.load`. `threads` is the number of CPUs that Ray
                has given to the actor, if not given here.
            options: The keywords of `Model.generate`.
        """
        self._columns = prompt, key, text
        self._seed = seed
        self._options = options
        self._model = _load(model, {"threads": _cpus(), **(load_options or {})})

    def __call__(self, batch):
        """Adds the texts to a batch: a mapping of columns of one length, or a `pyarrow.Table`."""
        prompt, key, text = self._columns
        keys, prompts = _values(batch, key), _values(batch, prompt)
        texts = self._texts(keys, prompts)
        if hasattr(batch, "append_column"):
            import pyarrow

            return batch.append_column(text, pyarrow.array(texts, pyarrow.string()))
        return {**batch, text: texts}

    def _texts(self, keys: list[Any], prompts: list[Any]) -> list[str]:
        model = self._model
        requests = [
            model._request(
                model.tokenize(prompt) if isinstance(prompt, str) else prompt,
                {**self._options, "seed": row_seed(self._seed, key)},
            )
            for key, prompt in zip(keys, prompts)
        ]
        return [result.text for result in model._wait(requests, False, {})]


class Embedder:
    """A class for `Dataset.map_batches`: adds a column with the vector of each text."""

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        text: str = "text",
        embedding: str = "embedding",
        load_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            model: As for `Generator`.
            text: The column with the texts.
            embedding: The column to add: lists of numbers.
            load_options: As for `Generator`.
            options: The keywords of `Model.embed`.
        """
        self._columns = text, embedding
        self._options = options
        self._model = _load(model, {"threads": _cpus(), **(load_options or {})})

    def __call__(self, batch):
        """Adds the vectors to a batch: a mapping of columns of one length, or a `pyarrow.Table`."""
        text, embedding = self._columns
        vectors = self._model.embed(_values(batch, text), **self._options)
        if hasattr(batch, "append_column"):
            import pyarrow

            column = pyarrow.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
            return batch.append_column(embedding, column)
        return {**batch, embedding: vectors}


def row_seed(seed: int, key: object) -> int:
    """The seed of a row, from 0 to 2**53 − 1: `Model.generate` gives the same text with it."""
    digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 11


def generate(
    dataset: ray.data.Dataset,
    output: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    *,
    actors: int = 1,
    cpus: float = 1,
    batch_size: int = 256,
    key: str = "id",
    **options: Any,
) -> int:
    """Writes a dataset with an additional column of texts to a folder of Parquet files.

    If a run is ended at any moment, call it again with the same arguments: finished rows stay, the
    others are generated, and no row is lost or there twice. A second run with the same folder takes
    it over: the first one fails.

    Args:
        dataset: The rows. Reading it again must give the same keys.
        output: The folder, which the driver and all nodes see under this path. Names in it that
            begin with `_` are of runs in progress; readers of Parquet ignore them.
        model: As for `Generator`.
        actors: Number of actors.
        cpus: CPUs of each actor; its engine has as many threads. Leave some for the tasks that
            read the dataset: if actors have all CPUs, Ray waits forever.
        batch_size: Number of rows that an actor generates together and then keeps.
        key: The column with the keys of the rows: whole numbers or texts, each once. The keys of
            finished rows are in the memory of one process while a run begins.
        options: The further keywords of `Generator`.

    Returns:
        The number of rows that this run generated.

    Raises:
        bitnet.Error: A key is there twice, or another run took over.
    """
    import ray.data

    folder = _Folder(pathlib.Path(output), key)
    folder.accept_earlier_runs()
    done = folder.keys()
    rows = dataset
    if done:
        rows = rows.map_batches(
            _Unfinished,
            fn_constructor_args=(ray.put(done), key),
            batch_format="pyarrow",
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=1),
            # Actors of the next step may have all CPUs.
            num_cpus=0,
        )
    run = folder.begin_run()
    # A run has no state but its files, so Ray may repeat batches as often as it wants.
    counts = rows.map_batches(
        _Writer,
        fn_constructor_args=(str(run), model),
        fn_constructor_kwargs={"key": key, **options},
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=cpus,
    )
    num_rows = sum(row["rows"] for row in counts.iter_rows())
    num_new = folder.accept(run)
    if num_new != num_rows:
        raise Error(
            f"{num_rows} rows were generated, but they have {num_new} different keys that are new: "
            f"the column {key!r} must have each key once"
        )
    return num_new


class _Writer(Generator):
    """Generates batches and writes each one to a file; returns the number of its rows."""

    def __init__(self, run: str, model: Any, **options: Any) -> None:
        super().__init__(model, **options)
        self._run = pathlib.Path(run)

    def __call__(self, batch: pyarrow.Table) -> dict[str, list[int]]:
        # A batch that is repeated replaces its file.
        keys = "\n".join(map(repr, _values(batch, self._columns[1])))
        name = hashlib.blake2b(keys.encode(), digest_size=16).hexdigest()
        try:
            _write(super().__call__(batch), self._run / f"part-{name}.parquet")
        except FileNotFoundError as error:
            raise Error(f"another run has taken over {self._run.parent}") from error
        return {"rows": [batch.num_rows]}


class _Unfinished:
    """Leaves the rows whose keys are not finished."""

    def __init__(self, done: ray.ObjectRef[set[Any]], key: str) -> None:
        import ray

        self._done = ray.get(done)
        self._key = key

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        return _without(batch, self._key, self._done)


class _Folder:
    """The folder of the answers.

    `part-….parquet` are finished. A run writes to `_run-…`; the next run, or its own end, renames
    it to `_closed-…`, so that what is left of the old run can write no more, and then moves its
    files up.
    """

    def __init__(self, path: pathlib.Path, key: str) -> None:
        self._path = path.absolute()
        self._key = key
        self._path.mkdir(parents=True, exist_ok=True)

    def begin_run(self) -> pathlib.Path:
        """Makes the folder of a new run."""
        run = self._path / f"_run-{uuid.uuid4().hex}"
        run.mkdir()
        return run

    def accept_earlier_runs(self) -> None:
        """Accepts the files of runs that were ended."""
        for pattern in ("_closed-*", "_run-*"):
            for run in sorted(self._path.glob(pattern)):
                self.accept(run)

    def accept(self, run: pathlib.Path) -> int:
        """Closes a run and moves its files up, without rows whose keys are there. Returns the
        number of rows that are new."""
        closed = run.with_name(run.name.replace("_run-", "_closed-", 1))
        try:
            run.rename(closed)
        except FileNotFoundError as error:
            raise Error(f"another run has taken over {self._path}") from error
        done = self.keys()
        num_new = 0
        for part in sorted(closed.glob("part-*.parquet")):
            table = _read(part)
            new = _without(table, self._key, done)
            if new.num_rows < table.num_rows:
                _write(new, part)
            if new.num_rows > 0:
                os.replace(part, self._path / part.name)
            done.update(_values(new, self._key))
            num_new += new.num_rows
        shutil.rmtree(closed)
        return num_new

    def keys(self) -> set[Any]:
        """The keys of the finished rows."""
        keys: set[Any] = set()
        for part in self._path.glob("part-*.parquet"):
            keys.update(_values(_read(part, [self._key]), self._key))
        return keys


def _values(batch, column: str) -> list[Any]:
    """The values of a column of a batch, as Python has them."""
    names = batch.column_names if hasattr(batch, "column_names") else list(batch)
    if column not in names:
        raise RequestError(f"there is no column {column!r} among {', '.join(map(repr, names))}")
    values = batch[column]
    for convert in ("to_pylist", "tolist"):
        if hasattr(values, convert):
            return getattr(values, convert)()
    return list(values)


def _without(table: pyarrow.Table, key: str, done: set[Any]) -> pyarrow.Table:
    """The rows of a table with new keys, each once."""
    import pyarrow

    seen: set[Any] = set()
    is_new = []
    for value in _values(table, key):
        is_new.append(value not in done and value not in seen)
        seen.add(value)
    return table.filter(pyarrow.array(is_new, pyarrow.bool_()))


def _read(path: pathlib.Path, columns: list[str] | None = None) -> pyarrow.Table:
    import pyarrow.parquet

    # Names of columns never come from the path.
    return pyarrow.parquet.read_table(path, columns=columns, partitioning=None)


def _write(table: pyarrow.Table, path: pathlib.Path) -> None:
    """Writes a file that is whole under its name, or not there."""
    import pyarrow.parquet

    # A name of its own: a repeated batch may be written twice at once.
    partial = path.with_name(f"_{uuid.uuid4().hex}")
    with open(partial, "wb") as file:
        pyarrow.parquet.write_table(table, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _load(model: str | os.PathLike[str] | None, options: dict[str, Any]) -> Model:
    """Loads a model; pulls it first if it is the name of one that is not pulled. Actors of one node
    wait for each other meanwhile, so that it is pulled once."""
    try:
        return load(model, **options)
    except ModelNotFoundError as error:
        if model is None or "bitnet pull" not in str(error):
            raise
    _pull(os.fspath(model))
    return load(model, **options)


def _pull(name: str) -> None:
    import subprocess
    import tempfile

    from ._program import command

    digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    lock = pathlib.Path(tempfile.gettempdir()) / f"bitnet-pull-{digest}.lock"
    with open(lock, "a") as file:
        _lock(file)
        # A model that is there already is not downloaded again.
        done = subprocess.run(command("pull", name), capture_output=True, text=True)
    if done.returncode != 0:
        raise ModelNotFoundError(done.stderr.strip().removeprefix("error: "))


def _lock(file) -> None:
    """Waits until this process alone has the file, which it has until the file is closed."""
    try:
        import fcntl
    except ImportError:  # Windows: `bitnet pull` itself refuses to run twice at once
        return
    fcntl.flock(file, fcntl.LOCK_EX)


def _cpus() -> int | None:
    """The CPUs that Ray has given to this actor; `None` outside of actors."""
    import ray

    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    if context.get_actor_id() is None:
        return None
    cpus = context.get_assigned_resources().get("CPU")
    return None if cpus is None else max(1, int(cpus))
