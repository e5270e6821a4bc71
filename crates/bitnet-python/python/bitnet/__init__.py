"""Ternary (1-bit) language models on the CPU.

>>> import bitnet
>>> model = bitnet.load()  # the built-in story-teller; or a path, or the name of a pulled model
>>> print(model.generate("Once upon a time", max_tokens=40, seed=1))

`load` returns a `Model`. It generates text (`generate`, `chat`, `stream` and their asynchronous
twins `agenerate`, `achat`, `astream`), and shows what lies below: `tokenize`, `detokenize`,
`logits`, `perplexity`.
"""

from ._errors import (
    EngineError,
    Error,
    ModelError,
    ModelFileError,
    ModelNotFoundError,
    RequestError,
)
from ._model import Model, load
from ._native import __version__
from ._results import Piece, Result, Timings, TokenLogprobs
from ._streams import AsyncStream, Stream

__all__ = [
    "AsyncStream",
    "EngineError",
    "Error",
    "Model",
    "ModelError",
    "ModelFileError",
    "ModelNotFoundError",
    "Piece",
    "RequestError",
    "Result",
    "Stream",
    "Timings",
    "TokenLogprobs",
    "__version__",
    "load",
]
