"""Readers of annotated corpora, one module per format; :func:`training.data.formats.conversion.convert` uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from training.data.formats import bioc, brat, cblue, conll, pubtator
from training.data.formats.common import AnnotatedText, Reading

Format = Literal["brat", "bioc", "pubtator", "conll", "cblue"]
Reader = Callable[[Path, Reading], Iterator[AnnotatedText]]

READERS: Mapping[Format, Reader] = {
    "brat": brat.read,
    "bioc": bioc.read,
    "pubtator": pubtator.read,
    "conll": conll.read,
    "cblue": cblue.read,
}
