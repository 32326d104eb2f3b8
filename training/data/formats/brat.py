"""brat standoff: folders of ``.txt`` files with an ``.ann`` file beside each.

Only text-bound annotations (``T`` lines) are mentions; an event's trigger is one too. Relations, events, attributes,
normalisations and notes are passed over. Offsets count the characters of the text file as it is, CR included.
Format: https://brat.nlplab.org/standoff.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from training.data.corpora import CorpusError
from training.data.formats.common import AnnotatedText, Annotation, Reading, lines

_SPAN = "[0-9]{1,9} [0-9]{1,9}"
_MENTION = re.compile(rf"T\S*\t(\S+)\s({_SPAN}(?:;{_SPAN})*)\t(.*)")


def read(source: Path, reading: Reading) -> Iterator[AnnotatedText]:
    """The texts of a folder and its subfolders; a text's id is its path without the ending."""
    if not source.is_dir():
        raise CorpusError(f"INPUT: {source.name} is not a folder; brat has two files a text, so name their folder")
    # macOS leaves hidden files beside the real ones in archives.
    files = [f for f in source.rglob("*") if f.suffix in (".txt", ".ann") and not f.name.startswith(".")]
    for stem in sorted({str(f)[: -len(f.suffix)] for f in files}):
        text, annotations = Path(f"{stem}.txt"), Path(f"{stem}.ann")
        name = Path(stem).relative_to(source).as_posix()
        if not annotations.is_file():
            # Whether such a text has no mention or was never annotated cannot be told.
            reading.left_out["text without an .ann file"] += 1
        elif not text.is_file():
            reading.bad(f"{name}.ann", "no .txt file beside it", "add the text or remove the annotations")
        else:
            yield from _read(text, annotations, name, reading)


def _read(text: Path, annotations: Path, name: str, reading: Reading) -> Iterator[AnnotatedText]:
    content = text.read_bytes()
    reading.advance(len(content))
    try:
        decoded = content.decode()  # a byte order mark counts as a character, as brat itself counts it
    except UnicodeDecodeError:
        reading.bad(f"{name}.txt", "text not in UTF-8", "convert the file to UTF-8")
        return
    yield AnnotatedText(name, decoded, tuple(_mentions(annotations, name, reading)), f"{name}.txt")


def _mentions(file: Path, name: str, reading: Reading) -> Iterator[Annotation]:
    for number, (_, line) in enumerate(lines(file, reading), 1):
        if not line.startswith("T"):
            continue
        place = f"{name}.ann, line {number}"
        if (found := _MENTION.fullmatch(line)) is None:
            reading.bad(place, "malformed T line", "it must be `T1<tab>Label 0 5<tab>text`")
            continue
        label, offsets, surface = found.groups()
        fragments = [fragment.split() for fragment in offsets.split(";")]
        yield Annotation(tuple((int(start), int(end)) for start, end in fragments), label, surface, place)
