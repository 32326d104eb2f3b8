from __future__ import annotations

import io
from typing import get_args

import pytest

from shared.errors import FormatError
from shared.formats.common import annotated
from shared.formats.registry import FORMATS, FormatKey, writing
from tests.support.formats import document


def test_every_format_writes_and_has_a_media_type_of_its_own():
    assert set(FORMATS) == set(get_args(FormatKey))
    made = document("the IL-2 gene", [(4, 13, "dna"), (4, 8, "protein")])
    for key, format_ in FORMATS.items():
        out = io.BytesIO()
        format_.write([made], out, writing(key, None))
        assert out.getvalue()
    assert len({format_.media_type for format_ in FORMATS.values()}) == len(FORMATS)


def test_texts_are_needed_but_by_few():
    made = annotated(document("the IL-2 gene", [(4, 13, "dna")]).extraction, None)
    for key, format_ in FORMATS.items():
        if key in ("json", "w3c", "parquet"):
            format_.write([made], io.BytesIO(), writing(key, None))
        else:
            with pytest.raises(FormatError, match="text: is not known"):
                format_.write([made], io.BytesIO(), writing(key, None))


def test_a_unit_that_a_format_does_not_leave_open():
    assert writing("json", "utf16").unit == "utf16"
    with pytest.raises(FormatError, match="offset_unit: of brat is always codepoint"):
        writing("brat", "utf16")
