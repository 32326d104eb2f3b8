from __future__ import annotations

import pytest

from biobracket.local import Local
from shared.errors import DocumentError
from tests.support.http import extraction_of


class Extractor:
    def extract(self, documents):
        return [extraction_of(document) for document in documents]


def test_a_text_and_its_options():
    local = Local(Extractor())
    made = local.extract("asthma", id="a", lang="en", types=["disease"])
    assert (made.document_id, made.lang, made.types) == ("a", "en", ("disease",))
    assert local.extract("asthma").document_id != local.extract("asthma").document_id


def test_unknown_types_are_refused():
    with pytest.raises(DocumentError, match="types"):
        Local(Extractor()).extract("asthma", types=["zq17"])
