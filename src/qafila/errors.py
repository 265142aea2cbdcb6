"""The exception tree: every error that a user can cause is one of these.

    QafilaError
    ├── UsageError            an option or argument that makes no sense, or two that do not go together
    ├── ModelNotFoundError    a model, preset or file that is not there
    ├── ConfigError           a configuration that describes no Llama: names the key
    ├── FormatError           a file that is damaged, hostile or not of the format it claims: names the file
    │   └── UnsupportedError  a file in order, with something in it that Qafila does not handle: names it
    ├── TokenizerError        a tokenizer file or vocabulary that cannot be used
    ├── ChatError             messages that a chat format cannot express, or a template that fails
    ├── ContextLengthError    a prompt that does not fit the context
    ├── DownloadError         the network, the hub or the package index said no
    ├── UpstreamError         a server that answers for a model said no, or nothing: has its HTTP status
    ├── ModelClosedError      a model that was closed while it was asked
    ├── DataError             a data set that cannot be used: names file and line
    ├── AgentError            a run that is not there, or cannot go on
    ├── SandboxError          a command that cannot be confined here, or changes that cannot be kept
    ├── TrainingError         training had to stop: says why, and what was kept
    └── StorageError          a disk that is full or a folder that cannot be written

The message is one line: what is wrong, with which file, option or field, and the way out. The command line prints it
after ``error:`` and exits with status 2.
"""

from __future__ import annotations


class QafilaError(Exception):
    """Base of every error that a user can cause; ``str(error)`` is one clear line."""


class UsageError(QafilaError):
    """An option or argument that makes no sense."""


class ModelNotFoundError(QafilaError):
    """A model, preset or file that is not there."""


class ConfigError(QafilaError):
    """A configuration that describes no Llama; the message names the key."""


class FormatError(QafilaError):
    """A file that is damaged, hostile or not of the format it claims.

    Args:
        path: the file, as the user named it.
        problem: what is wrong with it, in one line.
    """

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


class UnsupportedError(FormatError):
    """A file in order, with something in it that Qafila does not handle."""


class TokenizerError(QafilaError):
    """A tokenizer file or vocabulary that cannot be used."""


class ChatError(QafilaError):
    """Messages that a chat format cannot express, or a template that fails."""


class ContextLengthError(QafilaError):
    """A prompt that does not fit the model's context."""


class DownloadError(QafilaError):
    """The network, the hub or the package index said no."""


class UpstreamError(QafilaError):
    """A server that answers for a model said no, or nothing.

    Args:
        message: one line; it names the server.
        status: of its answer; 0 where none came, 408 where none came in time.
        retry_after: what it said of when to come back, as it said it.
        param: the field that it names. code: its short name of the error.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        retry_after: str | None = None,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after, self.param, self.code = status, retry_after, param, code


class ModelClosedError(QafilaError):
    """A model that was closed while it was asked."""


class DataError(QafilaError):
    """A data set that cannot be used; the message names the file and, where there is one, the line."""


class AgentError(QafilaError):
    """A run that is not there or cannot go on; the message says why."""


class SandboxError(QafilaError):
    """A command that cannot be confined on this machine, or changes of its that cannot be kept."""


class TrainingError(QafilaError):
    """Training had to stop; the message says why, what was kept, and what to change."""


class StorageError(QafilaError):
    """A disk that is full, or a folder that cannot be written."""
