"""What became of the inputs of each parser."""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts of one parser; a fault by its kind, with the shortest input that led to it."""

    name: str
    accepted: int = 0
    refused: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    shortest: dict[str, bytes] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused + self.faults.total()

    def fault(self, kind: str, content: bytes) -> None:
        self.faults[kind] += 1
        if len(content) < len(self.shortest.get(kind, content + b" ")):
            self.shortest[kind] = content

    def report(self) -> str:
        """A line for each kind of fault."""
        return "\n".join(f"{n} x {kind}: {self.shortest[kind][:400]!r}" for kind, n in self.faults.most_common())


def where(error: BaseException) -> str:
    """The kind of an exception: its class, and the last of our own lines that it went through."""
    ours = [f for f in traceback.extract_tb(error.__traceback__) if any(p in f.filename for p in OURS)]
    return f"{type(error).__name__} at {ours[-1].filename.rpartition('/')[2]}:{ours[-1].lineno}" if ours else str(error)


OURS = ("/shared/", "/services/", "/training/")


def table(tallies: list[Tally]) -> str:
    """A row for each parser, and the sum of all."""
    rows = ["| parser | inputs | accepted | refused | faults |", "| --- | --- | --- | --- | --- |"]
    whole = Tally("all")
    for one in sorted(tallies, key=lambda tally: tally.name):
        rows.append(f"| {one.name} | {one.inputs} | {one.accepted} | {one.refused} | {one.faults.total()} |")
        whole.accepted += one.accepted
        whole.refused += one.refused
        whole.faults += one.faults
    rows.append(f"| {whole.name} | {whole.inputs} | {whole.accepted} | {whole.refused} | {whole.faults.total()} |")
    return "\n".join(rows)
