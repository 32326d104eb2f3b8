from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from services.ingest.suspects import Suspects


class Work:
    """Compared by identity, as the consumer's are."""

    def __init__(self, deadly: bool) -> None:
        self.deadly = deadly


@given(
    count=st.integers(1, 64),
    culprits=st.sets(st.integers(0, 63), max_size=3),
    attempts=st.integers(1, 6),
    processes=st.integers(1, 3),
)
def test_the_culprits_are_found_and_nobody_else(count: int, culprits: set[int], attempts: int, processes: int) -> None:
    works = [Work(n in culprits) for n in range(count)]
    deadly = [work for work in works if work.deadly]
    suspects: Suspects[Work] = Suspects(attempts)
    done: list[Work] = []
    guilty: list[Work] = []
    deaths = 0

    def try_(group: list[Work]) -> None:
        """Spread over processes, each of which dies with all it has if one of them kills it."""
        nonlocal deaths
        for n in range(processes):
            mine = group[n::processes]
            if not any(work.deadly for work in mine):
                done.extend(mine)
                continue
            deaths += 1
            for work in mine:
                if suspects.guilty(work):
                    guilty.append(work)
                else:
                    suspects.add(work)

    try_(works)
    while suspects:
        try_(suspects.take())
    assert guilty == deadly or set(guilty) == set(deadly)
    assert len(guilty) == len(deadly)
    assert sorted(map(id, done)) == sorted(id(work) for work in works if not work.deadly)
    assert deaths <= len(deadly) * (math.ceil(math.log2(max(2, count))) + attempts + 1)
    assert list(suspects) == []


def test_one_that_was_not_alone_is_never_guilty() -> None:
    suspects: Suspects[Work] = Suspects(1)
    works = [Work(False), Work(False)]
    for work in works:
        assert not suspects.guilty(work)
        suspects.add(work)
    (first,) = suspects.take()
    assert suspects.guilty(first)
    assert not suspects.guilty(works[1])


def test_what_went_to_another_consumer_is_forgotten() -> None:
    suspects: Suspects[Work] = Suspects(2)
    works = [Work(False) for _ in range(5)]
    for work in works[:3]:
        suspects.add(work)
    suspects.take()
    for work in works[3:]:
        suspects.add(work)
    suspects.drop(lambda work: work in (works[2], works[4]))
    assert list(suspects) == [works[3]]
    assert suspects.take() == [works[3]]
    assert suspects
    assert suspects.take() == []
    assert not suspects
