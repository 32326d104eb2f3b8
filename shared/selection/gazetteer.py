"""The gazetteer: how often the training corpora annotate the same words as a type, and how often they do not.

It stores words as 64-bit hashes and no text, so it can be shared where the corpus may not. On disk,
``gazetteer.safetensors``: per type the hashes and counts of its mentions, per corpus those of all words counted, and
the types each corpus annotates.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from shared.errors import SelectorError

GAZETTEER_FILE = "gazetteer.safetensors"
_CORPORA = "corpora"  # in the file's metadata


def normal(text: str) -> str:
    """Normalised words: case-folded, without white space."""
    return "".join(text.casefold().split())


def key(words: str) -> int:
    """The 64-bit hash of normalised words."""
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class WordCounts:
    """Counts by hash. ``keys``: (n,) sorted hashes; ``counts``: (n,)."""

    keys: NDArray[np.uint64]
    counts: NDArray[np.uint32]

    @classmethod
    def of(cls, counted: Mapping[str, int]) -> WordCounts:
        """From the counts of normalised words."""
        found: dict[int, int] = {}
        for words, count in counted.items():
            hashed = key(words)
            found[hashed] = found.get(hashed, 0) + count
        keys = np.array(sorted(found), dtype=np.uint64)
        return cls(keys, np.array([found[k] for k in keys.tolist()], dtype=np.uint32))

    def get(self, hashed: int) -> int:
        """The count of a hash; 0 if unknown."""
        at = int(np.searchsorted(self.keys, np.uint64(hashed)))
        return int(self.counts[at]) if at < len(self.keys) and int(self.keys[at]) == hashed else 0


class Gazetteer:
    """See the module."""

    def __init__(
        self,
        corpora: Mapping[str, tuple[str, ...]],
        mentions: Mapping[str, WordCounts],
        words: Mapping[str, WordCounts],
    ) -> None:
        """``corpora``: the types each one annotates; ``mentions``: counts by type; ``words``: counts by corpus."""
        self._corpora = dict(corpora)
        self._mentions = dict(mentions)
        self._words = dict(words)
        self._of_type = {
            type_: [words[name] for name, annotates in corpora.items() if type_ in annotates] for type_ in mentions
        }

    def counts(self, type_: str, text: str) -> tuple[int, int]:
        """How often the words of a mention were annotated as the type, and how often they occurred without."""
        if type_ not in self._mentions:
            return 0, 0
        hashed = key(normal(text))
        accepted = self._mentions[type_].get(hashed)
        return accepted, max(0, sum(words.get(hashed) for words in self._of_type[type_]) - accepted)

    def log_odds(self, type_: str, text: str) -> float:
        """The log-odds that these words are a mention of the type, in any context; 0 if unknown."""
        accepted, rejected = self.counts(type_, text)
        return math.log1p(accepted) - math.log1p(rejected)

    def __len__(self) -> int:
        """The number of distinct words, summed over corpora."""
        return sum(len(words.keys) for words in self._words.values())

    def save(self, folder: Path) -> None:
        """Writes the gazetteer into a folder. Raises OSError if it cannot."""
        tensors: dict[str, NDArray[np.uint64] | NDArray[np.uint32]] = {}
        for what, counted in (("mentions", self._mentions), ("words", self._words)):
            for name, counts in counted.items():
                tensors |= {f"{what}/{name}/keys": counts.keys, f"{what}/{name}/counts": counts.counts}
        save_file(tensors, folder / GAZETTEER_FILE, metadata={_CORPORA: json.dumps(self._corpora, sort_keys=True)})

    @classmethod
    def load(cls, folder: Path) -> Gazetteer | None:
        """The gazetteer of a folder; None if it has none. Raises :class:`SelectorError` if the file is invalid."""
        file = folder / GAZETTEER_FILE
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="np") as opened:
                corpora = {name: tuple(types) for name, types in json.loads(opened.metadata()[_CORPORA]).items()}
                if not all(isinstance(type_, str) for types in corpora.values() for type_ in types):
                    raise ValueError("no types")
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            counts: dict[str, dict[str, WordCounts]] = {"mentions": {}, "words": {}}
            for what, by_name in counts.items():
                for name in {n.split("/")[1] for n in tensors if n.startswith(f"{what}/")}:
                    by_name[name] = WordCounts(tensors[f"{what}/{name}/keys"], tensors[f"{what}/{name}/counts"])
            return cls(corpora, counts["mentions"], counts["words"])
        except (SafetensorError, OSError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
            raise SelectorError(
                f"selector: {file} is not a gazetteer; make it again with `biobracket train gazetteer`"
            ) from None
