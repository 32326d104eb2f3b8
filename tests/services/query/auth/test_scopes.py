from __future__ import annotations

from fastapi import params

from services.query.auth.scopes import OPEN, SCOPES, is_open, known, required, requires


def test_what_a_route_declares() -> None:
    other = params.Depends(lambda: None)
    assert required([]) is None
    assert required([other]) is None
    assert required([requires(None)]) == frozenset()
    assert required([other, requires("read"), requires("admin")]) == {"read", "admin"}
    assert is_open([other, OPEN])
    assert not is_open([other, requires("read")])
    assert required([OPEN]) is None


def test_scopes_of_others_are_left_out() -> None:
    assert known(["read", "READ", "openid", 7, None, "admin"]) == {"read", "admin"}
    assert known(SCOPES) == set(SCOPES)
