"""A generator's candidates on a corpus, labelled correct or wrong, without text: training data for its selector.

The generator must not have been trained on these texts, or it makes fewer mistakes than on unseen ones. Cross-fitting
(``folds`` and ``fold`` of a run and of ``biobracket candidates``) still uses the whole corpus: the candidates of each
part come from a generator trained on the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.messages import Candidate
from training.data.corpora import CorpusError, Example, GoldMention


class Row(BaseModel):
    """A candidate, with offsets into the text that has this SHA-256 (hex)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_sha256: str
    start: int
    end: int
    type: str
    right: bool
    confidence: float
    greedy: bool


def digest(text: str) -> str:
    """The SHA-256 by which rows refer to a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def rows(examples: Sequence[Example], candidates: Sequence[Iterable[Candidate]]) -> list[Row]:
    """The candidates of each example."""
    found = []
    for example, proposed in zip(examples, candidates, strict=True):
        gold = {(m.start, m.end, m.type) for m in example.mentions}
        found += [
            Row(
                text_sha256=digest(example.text),
                start=c.start,
                end=c.end,
                type=c.type,
                right=(c.start, c.end, c.type) in gold,
                confidence=c.generator_confidence,
                greedy=c.greedy,
            )
            for c in proposed
        ]
    return found


def write(file: Path, found: Iterable[Row]) -> None:
    """Writes one JSON object per line."""
    file.write_text("".join(row.model_dump_json() + "\n" for row in found), encoding="utf-8")


def files(given: Iterable[Path]) -> list[Path]:
    """The files given and those in given folders, in order. Raises CorpusError if a folder has none."""
    found: list[Path] = []
    for path in given:
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise CorpusError(f"candidates: no .jsonl file in {path}; create one with `biobracket candidates`")
        found += inside
    return found


def wrong(given: Iterable[Path]) -> dict[str, list[GoldMention]]:
    """The wrong candidates by :func:`digest` of their text, from files written by :func:`write`, or folders of them.

    Raises CorpusError if a file is not one of these.
    """
    found: dict[str, list[GoldMention]] = {}
    for file in files(given):
        try:
            with file.open("rb") as lines:
                for line in lines:
                    row = Row.model_validate_json(line)
                    mistakes = found.setdefault(row.text_sha256, [])
                    if not row.right:
                        mistakes.append(GoldMention(row.start, row.end, row.type))
        except (OSError, ValidationError):
            raise CorpusError(
                f"candidates: {file} is not a file of candidates; create one with `biobracket candidates`"
            ) from None
    return found
