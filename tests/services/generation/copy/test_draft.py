from __future__ import annotations

import pytest

from services.generation.copy.draft import Memory
from services.generation.engine import TagRequest
from shared.text.grammar import Labels
from shared.text.pieces import split
from tests.support.copying import TEXTS, TYPES, made, segment


def test_what_was_drafted_before_changes_nothing(folder, reference):
    """Drafts are guessed from earlier lines; the lines are the same whatever was read before."""
    engine = made(folder)
    requests = [TagRequest(segment(text, index=i), TYPES) for i, text in enumerate(TEXTS)]
    first, second, third = (engine.tag(requests) for _ in range(3))
    assert [line.tagged for line in first] == [line.tagged for line in second] == [line.tagged for line in third]
    for one, other in zip(first, third, strict=True):
        assert one.brackets == pytest.approx(other.brackets, abs=1e-4)


def test_memory_guesses_ends_and_types_from_earlier_mentions(tokens):
    memory, labels = Memory(), Labels(tokens, TYPES, "en")
    earlier = split("the CD28 gene of Jurkat T cells")
    memory.learn(earlier, [(1, 3, "protein"), (5, 8, "cell_line")])
    later = split("a CD28 gene and Jurkat T cells or CD4")
    assert memory.ends(later, 1) == 3
    assert memory.ends(later, 0) is None
    assert memory.type(later, 1, 3, labels) == TYPES.index("protein")
    assert memory.type(later, 5, 8, labels) == TYPES.index("cell_line")
    memory.learn(earlier, [(1, 3, "protein")])
    assert memory.type(later, 9, 11, labels) == TYPES.index("protein")  # the most frequent one
    assert memory.type(later, 1, 3, Labels(tokens, ("disease", "dna"), "en")) == 0  # a type that was not asked for


def test_memory_is_bounded():
    memory = Memory(size=3)
    pieces = split("a b c d e f")
    for i in range(6):
        memory.learn(pieces, [(i, i + 1, "dna")])
    assert memory.ends(pieces, 5) == 6
    assert memory.ends(pieces, 0) is None
