"""Errors that cross from one service to another, without document text."""

from __future__ import annotations

import re

from pydantic import ValidationError

# What a member may be called to be quoted: a name that is none of ours can be text of a document.
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


def first_problem(error: ValidationError) -> str:
    """Place and problem of the first error, without its input."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(quotable, first["loc"])) or "file"
    return f"{place}: {first['msg'].removeprefix('Value error, ')}"  # which pydantic prepends to a validator's message


def quotable(name: str | int) -> str:
    """What an error may say of a member's name."""
    return str(name) if _NAME.fullmatch(str(name)) else "…"


class DocumentError(ValueError):
    """A document that cannot be processed, however often it is retried.

    ``field`` names the part at fault, ``problem`` says what is wrong with it and ``remedy`` what to do. None of them
    holds document text, so they may be logged, put on a dead letter or returned to a client. ``reason`` is a
    :data:`shared.backends.records.DeadLetterReason`. The error survives pickling between Ray actors.
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
    """A service is overloaded and rejected the request; nothing is wrong with the document, try again later."""


class AdapterError(ValueError):
    """An adapter that cannot be used; names the file, the field and the remedy."""


class DigestError(ValueError):
    """A model's file is missing or not the one whose digest is known; names the file and the remedy."""


class SelectorError(ValueError):
    """A selector is unusable; the message names the file, the field and the remedy."""


class ExemplarError(ValueError):
    """Exemplars or an index are unusable; the message names the file or field and the remedy, never a mention."""


class BackendError(Exception):
    """A backend refused or could not be reached.

    The message names the setting and the remedy, never an address or an option's value. ``retryable``: whether the same
    call may succeed later without any change.
    """

    def __init__(self, message: str, retryable: bool) -> None:
        super().__init__(message, retryable)  # both, so that it survives pickling between Ray actors
        self.retryable = retryable

    def __str__(self) -> str:
        return str(self.args[0])


class StreamError(BackendError):
    """Kafka refused or could not be reached."""


class Rebalancing(StreamError):
    """The group is rebalancing: a commit must wait until the source's next poll has settled that."""


class MixedAssignors(StreamError):
    """The broker keeps this consumer out of its group, whose members assign partitions by another strategy."""


class Fenced(StreamError):
    """Another consumer has taken this static member's place in the group: this one can read and commit no more."""


class StoreError(BackendError):
    """The store refused or could not be reached."""
