"""Language detection between the two languages that biobracket knows."""

from __future__ import annotations

import re

from shared.messages import Lang
from shared.text.segmentation import CJK, LATIN

_CJK = re.compile(f"[{CJK}]")
_LATIN_WORD = re.compile(f"[{LATIN}]+")


def detect(text: str) -> Lang:
    """``zh`` where Chinese characters outnumber half the Latin words, else ``en``.

    A Chinese word has about two characters, so characters are weighed against words, not letters; and a Chinese note
    keeps drug names, genes and units in Latin while an English text hardly quotes Chinese, so Chinese wins a draw.
    Text with neither (empty, digits, symbols) is ``en``.
    """
    chinese = len(_CJK.findall(text))
    return "zh" if chinese and 2 * chinese >= len(_LATIN_WORD.findall(text)) else "en"
