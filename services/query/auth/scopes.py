"""Scopes, and how a route says which one it takes.

A route declares it among its dependencies, ``dependencies=[requires("read")]`` or ``[OPEN]``; the declaration is also
what OpenAPI says of the route. The middleware refuses a route that declares nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

from fastapi import params
from fastapi.security import HTTPBearer

Scope = Literal["read", "extract", "feedback", "admin"]
"""``read``: stored results; ``extract``: extraction of a text; ``feedback``: to give, list and withdraw it, passages
included; ``admin``: what removes documents. None includes another."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

BEARER = HTTPBearer(
    scheme_name="bearer",
    bearerFormat="API key or JSON Web Token",
    description="An API key or a JSON Web Token with the scope that the operation names. Not checked where the server "
    "runs without authentication.",
    auto_error=False,  # it only declares: the middleware has authenticated before a route's dependencies are called
)


def _open() -> None:
    """Marks a route that anybody may call."""


OPEN = params.Depends(_open)


def requires(scope: Scope | None) -> params.Security:
    """The declaration of a route for callers that have ``scope``; None: for every authenticated caller."""
    return params.Security(BEARER, scopes=[] if scope is None else [scope])


def is_open(dependencies: Iterable[params.Depends]) -> bool:
    """Whether a route with these dependencies declares that anybody may call it."""
    return any(each.dependency is _open for each in dependencies)


def required(dependencies: Iterable[params.Depends]) -> frozenset[str] | None:
    """The scopes that a route with these dependencies declares; None: it declares nothing."""
    declared = [each for each in dependencies if isinstance(each, params.Security) and each.dependency is BEARER]
    if not declared:
        return None
    return frozenset(scope for each in declared for scope in each.scopes or ())


def known(values: Iterable[Any]) -> frozenset[str]:
    """The scopes among some values; others, meant for other services, are left out."""
    return frozenset(value for value in values if isinstance(value, str) and value in SCOPES)
