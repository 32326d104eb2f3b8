"""What programs import: clients of the HTTP interface, and :func:`load` to extract in this process.

    import biobracket

    with biobracket.Client("http://127.0.0.1:8000") as client:
        for entity in client.extract("Activation of the CD28 receptor.").entities:
            print(entity.type, entity.text)

    extractor = biobracket.load()  # the model in this process, without servers
    extractor.extract("患者因右肺腺癌入院。")

Importing it loads neither torch nor Ray; :func:`load` does.
"""

from __future__ import annotations

from biobracket.client import AsyncClient, Client
from biobracket.errors import ApiError, BiobracketError
from biobracket.local import Local, load
from shared.messages import Document, Entity, Extraction, Mention
from shared.selection.feedback import Feedback

__all__ = [
    "ApiError",
    "AsyncClient",
    "BiobracketError",
    "Client",
    "Document",
    "Entity",
    "Extraction",
    "Feedback",
    "Local",
    "Mention",
    "load",
]
