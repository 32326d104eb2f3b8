"""A generator's candidates on a corpus, as right or wrong: what a selector for it learns from. They hold no text.

The generator must not have been trained on the texts, else it makes fewer mistakes there than it will. By cross-fitting
(``folds`` and ``fold`` of a run, and of ``biobracket candidates``) a corpus is used up all the same: for each part a
generator that was trained on the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.messages import Candidate
from training.data.corpora import CorpusError, Example, Mention


class Row(BaseModel):
    """A candidate. Offsets into the text whose hex SHA-256 it has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_sha256: str
    start: int
    end: int
    type: str
    right: bool
    confidence: float
    greedy: bool


def digest(text: str) -> str:
    """What a row knows a text by."""
    return hashlib.sha256(text.encode()).hexdigest()


def rows(examples: Sequence[Example], candidates: Sequence[Iterable[Candidate]]) -> list[Row]:
    """The candidates of each example."""
    found = []
    for example, of in zip(examples, candidates, strict=True):
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
            for c in of
        ]
    return found


def write(file: Path, found: Iterable[Row]) -> None:
    """One JSON object a line."""
    file.write_text("".join(row.model_dump_json() + "\n" for row in found), encoding="utf-8")


def files(given: Iterable[Path]) -> list[Path]:
    """Files, and those of folders, in order. CorpusError where a folder has none."""
    found: list[Path] = []
    for path in given:
        inside = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not inside:
            raise CorpusError(f"candidates: no .jsonl file in {path}; make one with `biobracket candidates`")
        found += inside
    return found


def wrong(given: Iterable[Path]) -> dict[str, list[Mention]]:
    """The wrong candidates of each text in files that :func:`write` made, by its digest. CorpusError.

    ``given``: files, and folders of them.
    """
    found: dict[str, list[Mention]] = {}
    for file in files(given):
        try:
            with file.open("rb") as lines:
                for line in lines:
                    row = Row.model_validate_json(line)
                    of = found.setdefault(row.text_sha256, [])
                    if not row.right:
                        of.append(Mention(row.start, row.end, row.type))
        except (OSError, ValidationError):
            raise CorpusError(
                f"candidates: {file} is not a file of candidates; make it with `biobracket candidates`"
            ) from None
    return found
