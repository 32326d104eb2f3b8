"""Identifiers in a path: the ``{id:document}`` convertor that their routes use."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from starlette.convertors import StringConvertor, register_url_convertor

from shared.messages import MAX_ID_CHARS


class DocumentId(StringConvertor):
    """Any identifier, including slashes and line breaks."""

    regex = "(?s:.*)"


register_url_convertor("document", DocumentId())

PathId = Annotated[
    str,
    Path(min_length=1, max_length=MAX_ID_CHARS, description="The identifier, percent-encoded.", examples=["note-1"]),
]
