"""brat standoff: folders of ``.txt`` files, each with an ``.ann`` file (``.a1`` in the BioNLP shared tasks) next to it.

Only text-bound annotations (``T`` lines) are mentions, event triggers included. Relations, events, attributes,
normalisations and notes are ignored. Offsets count the characters of the text file. Some tools count Windows line
endings and byte order marks as brat does, others do not; the mentions of each text show which.
Format: https://brat.nlplab.org/standoff.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from training.data.corpora import CorpusError
from training.data.formats.common import AnnotatedText, Annotation, Reading, lines
from training.data.formats.fragments import fits, fits_normalised

_SPAN = "[0-9]{1,9} [0-9]{1,9}"
_MENTION = re.compile(rf"T\S*\t(\S+)\s({_SPAN}(?:;{_SPAN})*)\t(.*)")
_ANNOTATIONS = (".ann", ".a1")
# Characters that offsets may skip, by name; the first wins a tie.
_UNCOUNTED = {
    "": "(?!)",
    "a Windows line ending as one character": r"\r(?=\n)",
    "no byte order mark": r"\A\ufeff",
    "a Windows line ending as one character and no byte order mark": r"\r(?=\n)|\A\ufeff",
}


def read(source: Path, reading: Reading) -> Iterator[AnnotatedText]:
    """The texts of a folder and its subfolders; a text's id is its path without the extension."""
    if not source.is_dir():
        raise CorpusError(
            f"INPUT: {source.name} is not a folder; brat has two files per text, so give the folder that holds them"
        )
    # Archives made on macOS contain hidden files next to the real ones.
    files = sorted(f for f in source.rglob("*") if not f.name.startswith(".") and f.is_file())
    texts = {_stem(f, source): f for f in files if f.suffix.lower() == ".txt"}
    annotated = {_stem(f, source): f for suffix in reversed(_ANNOTATIONS) for f in files if f.suffix.lower() == suffix}
    for name in sorted(texts.keys() | annotated.keys()):
        if name not in annotated:
            # Such a text may have no mentions, or may never have been annotated.
            reading.left_out["text without an .ann file"] += 1
        elif name not in texts:
            place = name + annotated[name].suffix
            reading.bad(place, "no .txt file next to it", "add the text or remove the annotations")
        else:
            yield from _read(texts[name], annotated[name], name, reading)


def _stem(file: Path, source: Path) -> str:
    return file.relative_to(source).with_suffix("").as_posix()


def _read(text: Path, annotations: Path, name: str, reading: Reading) -> Iterator[AnnotatedText]:
    content = text.read_bytes()
    reading.advance(len(content))
    place = name + text.suffix
    try:
        decoded = content.decode()
    except UnicodeDecodeError:
        reading.bad(place, "text not in UTF-8", "convert the file to UTF-8")
        return
    yield AnnotatedText(name, decoded, _placed(decoded, list(_mentions(annotations, name, reading)), reading), place)


def _placed(text: str, annotations: list[Annotation], reading: Reading) -> tuple[Annotation, ...]:
    """The annotations, with offsets in code points of the unmodified text."""
    if "\r\n" not in text and not text.startswith("\ufeff"):
        return tuple(annotations)
    ways = {name: _moved(text, annotations, uncounted) for name, uncounted in _UNCOUNTED.items()}
    best = max(ways, key=lambda name: sum(_right(text, a) for a in ways[name]))
    if best:
        moved = sum(a.fragments != b.fragments for a, b in zip(annotations, ways[best], strict=True))
        reading.notes[f"mention whose offsets counted {best}"] += moved
    return ways[best]


def _right(text: str, annotation: Annotation) -> bool:
    return any(fit(text, annotation.fragments, annotation.text) for fit in (fits, fits_normalised))


def _moved(text: str, annotations: list[Annotation], uncounted: str) -> tuple[Annotation, ...]:
    """The annotations, if offsets skip the characters that match ``uncounted``."""
    left_out = {found.start() for found in re.finditer(uncounted, text)}
    if not left_out:
        return tuple(annotations)
    counted = list(accumulate((i not in left_out for i in range(len(text))), initial=0))
    # A mention begins after skipped characters and ends before them. -1, which is never valid, is outside the text.
    starts = {at: point for point, at in enumerate(counted)}
    ends = {at: point for point, at in reversed(list(enumerate(counted)))}
    return tuple(
        replace(a, fragments=tuple((starts.get(start, -1), ends.get(end, -1)) for start, end in a.fragments))
        for a in annotations
    )


def _mentions(file: Path, name: str, reading: Reading) -> Iterator[Annotation]:
    for number, (_, line) in enumerate(lines(file, reading), 1):
        if not line.startswith("T"):
            continue
        place = f"{name}{file.suffix}, line {number}"
        if (found := _MENTION.fullmatch(line)) is None:
            reading.bad(place, "malformed T line", "it must be `T1<tab>Label 0 5<tab>text`")
            continue
        label, offsets, surface = found.groups()
        fragments = [fragment.split() for fragment in offsets.split(";")]
        yield Annotation(tuple((int(start), int(end)) for start, end in fragments), label, surface, place)
