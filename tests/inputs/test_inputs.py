"""Bad input: whatever a parser is given, it accepts, or refuses by the error that it documents, without quoting it.

`make test` gives each a few inputs, `make inputs` thousands, and prints what became of them; the table is written
where `BIOBRACKET_INPUTS_TABLE` says.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.inputs.generation import changed_from, inputs
from tests.inputs.parsers import Parser, leaks, parsers
from tests.inputs.tally import Tally, table, where

FEW, MANY = 60, int(os.environ.get("BIOBRACKET_INPUTS", "2500"))
EFFORT = [pytest.param(FEW, id="few"), pytest.param(MANY, marks=[pytest.mark.inputs, pytest.mark.slow], id="many")]


@pytest.fixture(scope="module")
def tallies() -> Iterator[list[Tally]]:
    found: list[Tally] = []
    yield found
    if any(one.inputs > FEW for one in found):
        print("\n" + table(found))
        if file := os.environ.get("BIOBRACKET_INPUTS_TABLE"):
            Path(file).write_text(table(found) + "\n", encoding="utf-8")


def effort(count: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )


def judge(parser: Parser, content: bytes, tally: Tally) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        if parser.run(content, folder) is False:
            tally.refused += 1
        else:
            tally.accepted += 1
    except parser.refusals as error:
        # As a log would have it: with what it was raised from.
        if leaks("".join(traceback.format_exception(error)).replace(str(folder), "")):
            tally.fault(f"quotes the input: {where(error)}", content)
        else:
            tally.refused += 1
    except Exception as error:
        tally.fault(where(error), content)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("count", EFFORT)
@pytest.mark.parametrize("parser", parsers(), ids=lambda parser: parser.name)
def test_no_input_breaks_a_parser(parser: Parser, count: int, tallies: list[Tally]) -> None:
    tally = Tally(parser.name)
    tallies.append(tally)
    for seed in parser.seeds[:1]:
        judge(parser, seed, tally)

    # Hypothesis takes several times as long to think of an input as a parser to read it: most are made without it.
    thought_of = FEW if count == FEW else count // 10
    for number in range(count - thought_of):
        judge(parser, changed_from(parser.seeds[number % len(parser.seeds)], number), tally)

    @effort(thought_of)
    @hypothesis.given(inputs(parser.seeds, parser.fields))
    def give(content: bytes) -> None:
        judge(parser, content, tally)

    give()
    assert not tally.faults, tally.report()
    assert tally.inputs >= count / 2  # hypothesis stops early where there are no more
