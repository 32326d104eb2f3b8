"""Language detection: Chinese or English."""

from __future__ import annotations

import re

from shared.messages import Lang
from shared.text.segmentation import CJK, LATIN

_CJK = re.compile(f"[{CJK}]")
_LATIN_WORD = re.compile(f"[{LATIN}]+")


def detect(text: str) -> Lang:
    """``zh`` if there is at least one Chinese character per two Latin words, else ``en``.

    A Chinese word has about two characters, so characters are compared with words, not letters; and Chinese notes keep
    drug names, genes and units in Latin script while English text hardly ever quotes Chinese, so ties go to Chinese.
    Text with neither (empty, digits, symbols) is ``en``.
    """
    chinese = len(_CJK.findall(text))
    return "zh" if chinese and 2 * chinese >= len(_LATIN_WORD.findall(text)) else "en"
