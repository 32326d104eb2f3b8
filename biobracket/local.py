"""Extraction in this process, without servers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shared.messages import Document, Extraction, Lang

if TYPE_CHECKING:
    from services.extractor import Extractor


class Local:
    """Extracts with a model in this process. Made by :func:`load`."""

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor

    def extract(
        self, text: str, *, id: str | None = None, lang: Lang | None = None, types: Sequence[str] | None = None
    ) -> Extraction:
        """The entities of a text. DocumentError where its language or types are not known.

        ``id``: made up if None; ``lang``: detected if None; ``types``: keys, the default ones of the language if None.
        """
        made = Document(id=id or uuid.uuid4().hex, text=text, lang=lang, types=None if types is None else tuple(types))
        (extraction,) = self.extract_all([made])
        return extraction

    def extract_all(self, documents: Sequence[Document]) -> list[Extraction]:
        """The entities of each document, in order, many at a time: faster than one by one."""
        from shared import entity_types

        for document in documents:
            if document.types is not None:
                entity_types.check(document.types)
        return self._extractor.extract(documents)


def load() -> Local:
    """Loads the model that the settings (``BIOBRACKET_…``) name, by default the one that comes with biobracket."""
    from services.extractor import Extractor
    from shared.settings import settings

    return Local(Extractor.load(settings()))
