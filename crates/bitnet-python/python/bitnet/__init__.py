"""Ternary (1-bit) language models on the CPU.

>>> import bitnet
>>> model = bitnet.load()  # the built-in story-teller; or a path, or the name of a pulled model
>>> print(model.generate("Once upon a time", max_tokens=40, seed=1))

`load` returns a `Model`. It generates text (`generate`, `chat`, `stream` and their asynchronous
twins `agenerate`, `achat`, `astream`), and shows what lies below: `tokenize`, `detokenize`,
`logits`, `perplexity`, `receipt`. `serve` starts a server with OpenAI's API. `python -m bitnet` is
the program `bitnet`, which downloads models: `python -m bitnet pull 2b4t`.

`bitnet.ray` generates over datasets with Ray Data, and `bitnet.lm_eval` scores models with lm-eval.
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
from ._results import Piece, Receipt, Result, Timings, TokenLogprobs, ToolCall
from ._server import Server, serve
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
    "Receipt",
    "RequestError",
    "Result",
    "Server",
    "Stream",
    "Timings",
    "TokenLogprobs",
    "ToolCall",
    "__version__",
    "load",
    "serve",
]
