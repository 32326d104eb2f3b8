"""A caller, and why a credential is not accepted."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Caller(NamedTuple):
    """Who sends a request. The middleware puts it into the request's state as ``caller``."""

    kind: Literal["key", "jwt"]
    name: str
    """Of a key the caller it was made for, of a JSON Web Token its subject."""
    scopes: frozenset[str]

    @property
    def id(self) -> str:
        """The caller in one word: a key and a token of one name are different callers."""
        return f"{self.kind}:{self.name}"


class Rejected(Exception):
    """A credential is not accepted.

    ``code`` is for the log. ``problem`` is for the client; it says of a key more than that it is unknown only where
    the client has shown that it holds it.
    """

    def __init__(self, code: str, problem: str) -> None:
        super().__init__(code)
        self.code = code
        self.problem = problem


class Unavailable(Exception):
    """Credentials cannot be checked now; ``code`` is for the log."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class AuthenticationError(ValueError):
    """Authentication cannot be set up; the message names the setting and the remedy."""
