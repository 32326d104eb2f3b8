from __future__ import annotations

from services.query.auth.callers import Caller


def test_a_key_and_a_token_of_one_name_are_two_callers() -> None:
    assert Caller("key", "ward-3", frozenset()).id != Caller("jwt", "ward-3", frozenset()).id
