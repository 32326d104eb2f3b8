"""Random texts with mentions, and what a corpus of given files is converted to."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from training.data.formats import Format
from training.data.formats.common import Reading
from training.data.formats.conversion import convert

# Several bytes, several UTF-16 units, wide spaces, combining marks, and what `str.splitlines` takes for line ends.
ALPHABET = "ab Z9.β患肺癌，𝒜é\u0301\u3000\u2028\x85"
LABELS = ("Disease", "cell_line", "药物")


@st.composite
def annotated(draw: st.DrawFn, alphabet: str = ALPHABET) -> tuple[str, list[tuple[int, int, str]]]:
    """A text and its mentions: nested, crossing and touching ones too, none twice or with white space at its ends."""
    text = draw(st.text(alphabet, min_size=1, max_size=30).filter(str.strip))
    starts = st.integers(0, len(text) - 1)
    span = starts.flatmap(lambda start: st.tuples(st.just(start), st.integers(start + 1, len(text))))
    span = span.filter(lambda s: text[slice(*s)] == text[slice(*s)].strip())
    mention = st.tuples(span, st.sampled_from(LABELS)).map(lambda m: (*m[0], m[1]))
    return text, draw(st.lists(mention, max_size=6, unique=True))


class Converted:
    """The rows that files are converted to, and what came up on the way."""

    def __init__(self, format_: Format, files: dict[str, str | bytes], **options: Any) -> None:
        self.reading = Reading(**{k: options.pop(k) for k in list(options) if k in Reading.__slots__})
        with tempfile.TemporaryDirectory() as folder:
            corpus, out = Path(folder) / "corpus", Path(folder) / "out.jsonl"
            for name, content in files.items():
                file = corpus / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content if isinstance(content, bytes) else content.encode())
            source = corpus if format_ == "brat" or len(files) > 1 else file
            self.summary = convert(source, format_, out, self.reading, **options)
            self.rows = [json.loads(line) for line in out.read_text(encoding="utf-8").split("\n") if line]

    def texts(self) -> list[str]:
        return [row["text"] for row in self.rows]

    def mentions(self, row: int = 0) -> set[tuple[int, int, str]]:
        found = [(e["start"], e["end"], e["type"]) for e in self.rows[row]["entities"]]
        assert len(set(found)) == len(found)
        return set(found)

    def surfaces(self, row: int = 0) -> list[tuple[str, str]]:
        return [(e["text"], e["type"]) for e in self.rows[row]["entities"]]
