"""What a corpus calls the same words elsewhere: how often they were annotated as a type, and how often not.

It knows words by 64-bit hashes and holds no text, so that it can go where the corpus may not. On disk,
``gazetteer.safetensors``: of each type the hashes and counts of its mentions, of each corpus those of all words that
came up, and which types each corpus annotates.
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
    """The words that count as the same: whatever their case and the white space between them."""
    return "".join(text.casefold().split())


def key(words: str) -> int:
    """The hash of normal words."""
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Counts:
    """``keys``: (n,) hashes in rising order; ``counts``: (n,)."""

    keys: NDArray[np.uint64]
    counts: NDArray[np.uint32]

    @classmethod
    def of(cls, counted: Mapping[str, int]) -> Counts:
        """Those of normal words."""
        found: dict[int, int] = {}
        for words, count in counted.items():
            hashed = key(words)
            found[hashed] = found.get(hashed, 0) + count
        keys = np.array(sorted(found), dtype=np.uint64)
        return cls(keys, np.array([found[k] for k in keys.tolist()], dtype=np.uint32))

    def get(self, hashed: int) -> int:
        """The count of a hash; 0 where it is not known."""
        at = int(np.searchsorted(self.keys, np.uint64(hashed)))
        return int(self.counts[at]) if at < len(self.keys) and int(self.keys[at]) == hashed else 0


class Gazetteer:
    """See the module."""

    def __init__(
        self, corpora: Mapping[str, tuple[str, ...]], mentions: Mapping[str, Counts], words: Mapping[str, Counts]
    ) -> None:
        """``corpora``: the types that each annotates; ``mentions``: by type; ``words``: by corpus."""
        self._corpora = dict(corpora)
        self._mentions = dict(mentions)
        self._words = dict(words)
        self._of_type = {
            type_: [words[name] for name, annotates in corpora.items() if type_ in annotates] for type_ in mentions
        }

    def counts(self, type_: str, text: str) -> tuple[int, int]:
        """How often the words of a mention were annotated as a type, and how often they came up and were not."""
        if type_ not in self._mentions:
            return 0, 0
        hashed = key(normal(text))
        accepted = self._mentions[type_].get(hashed)
        return accepted, max(0, sum(words.get(hashed) for words in self._of_type[type_]) - accepted)

    def log_odds(self, type_: str, text: str) -> float:
        """That the words of a mention are one of its type, whatever stands around them; 0 where nothing is known."""
        accepted, rejected = self.counts(type_, text)
        return math.log1p(accepted) - math.log1p(rejected)

    def __len__(self) -> int:
        """How many different words it knows, corpus by corpus."""
        return sum(len(words.keys) for words in self._words.values())

    def save(self, folder: Path) -> None:
        """Writes it into a folder. OSError where it cannot be written."""
        tensors: dict[str, NDArray[np.uint64] | NDArray[np.uint32]] = {}
        for what, counted in (("mentions", self._mentions), ("words", self._words)):
            for name, of in counted.items():
                tensors |= {f"{what}/{name}/keys": of.keys, f"{what}/{name}/counts": of.counts}
        save_file(tensors, folder / GAZETTEER_FILE, metadata={_CORPORA: json.dumps(self._corpora, sort_keys=True)})

    @classmethod
    def load(cls, folder: Path) -> Gazetteer | None:
        """That of a folder, none where it has none. :class:`SelectorError` where its file is not one."""
        file = folder / GAZETTEER_FILE
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="np") as opened:
                corpora = {name: tuple(types) for name, types in json.loads(opened.metadata()[_CORPORA]).items()}
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
            counts: dict[str, dict[str, Counts]] = {"mentions": {}, "words": {}}
            for what, of in counts.items():
                for name in {n.split("/")[1] for n in tensors if n.startswith(f"{what}/")}:
                    of[name] = Counts(tensors[f"{what}/{name}/keys"], tensors[f"{what}/{name}/counts"])
            return cls(corpora, counts["mentions"], counts["words"])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            raise SelectorError(
                f"selector: {file} is not a gazetteer; make it again with `biobracket train gazetteer`"
            ) from None
