"""Exceptions. Their texts are the texts of the program `bitnet`."""


class Error(Exception):
    """Base of all exceptions of this package."""

    __module__ = "bitnet"


class RequestError(Error, ValueError):
    """An argument or a request is invalid."""

    __module__ = "bitnet"


class ModelError(Error, ValueError):
    """A model is damaged or not supported."""

    __module__ = "bitnet"


class ModelFileError(Error, OSError):
    """A file of a model cannot be read, or changed while it was in use."""

    __module__ = "bitnet"


class ModelNotFoundError(ModelFileError, FileNotFoundError):
    """There is no such file, and no pulled model of that name."""

    __module__ = "bitnet"


class EngineError(Error, RuntimeError):
    """The engine cannot answer: it was left behind by a fork, its GPU was lost, or it has stopped."""

    __module__ = "bitnet"
