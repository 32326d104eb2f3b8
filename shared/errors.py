"""Errors that cross from one service to another, told without document text."""

from __future__ import annotations


class DocumentError(ValueError):
    """A document that cannot be processed as it is, however often it is tried.

    ``field`` names the part at fault, ``problem`` says what is wrong with it and ``remedy`` what to do. None of them
    holds document text, so all of them may be logged, put on a dead letter or sent back to a client. The error
    survives pickling, which is how it crosses from one Ray actor to another. ``reason`` is the code of its kind, as in
    :data:`shared.backends.records.DeadLetterReason`.
    """

    def __init__(self, field: str, problem: str, remedy: str, reason: str = "invalid") -> None:
        super().__init__(field, problem, remedy, reason)
        self.field = field
        self.problem = problem
        self.remedy = remedy
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}; {self.remedy}"


class Overloaded(RuntimeError):
    """A service has too much waiting and took nothing on; nothing is wrong with the document, try again later."""


class AdapterError(ValueError):
    """An adapter that cannot be used; names the file, the field and the remedy."""


class SelectorError(ValueError):
    """A selector that cannot be used; names the file, the field and the remedy."""


class ExemplarError(ValueError):
    """Exemplars or an index that cannot be used; names the file or field and the remedy, never a mention."""


class StreamError(Exception):
    """Kafka refused or could not be reached. The message names the setting and the remedy, never an option's value.

    ``retryable``: whether the same call can succeed later with nothing changed here.
    """

    def __init__(self, message: str, retryable: bool) -> None:
        super().__init__(message, retryable)  # both, so that it survives pickling between Ray actors
        self.retryable = retryable

    def __str__(self) -> str:
        return str(self.args[0])


class StoreError(Exception):
    """The store refused or could not be reached. The message names the setting and the remedy, never the URL.

    ``retryable``: whether the same call can succeed later with nothing changed here.
    """

    def __init__(self, message: str, retryable: bool) -> None:
        super().__init__(message, retryable)  # both, so that it survives pickling between Ray actors
        self.retryable = retryable

    def __str__(self) -> str:
        return str(self.args[0])
