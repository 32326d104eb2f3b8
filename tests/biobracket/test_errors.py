from __future__ import annotations

from biobracket.errors import ApiError


def test_the_message_has_all_parts():
    assert str(ApiError(422, "text", "is missing", "send it")) == "422, text: is missing; send it"
