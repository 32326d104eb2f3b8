"""Reports of a run's scores on a corpus, as JSON, tables, Markdown and plots.

They contain no document text and no mentions.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.evaluation.scores import LENGTHS, NEAR, NestedScore, Score, Scores
from training.evaluation.significance import LEVEL, SEED, Difference, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PREDICTIONS, SCORES, PAGE = "predictions.jsonl", "scores.json", "scores.md"

# Distinguishable without colour: light, medium, dark.
_SHADES = ("#9ecae1", "#4292c6", "#08519c")


class ReportError(RuntimeError):
    """A report cannot be written; the message names the remedy."""


@dataclass(frozen=True, slots=True)
class Run:
    """What was run. ``seconds``: None if the extractions were made earlier; ``mapping``: what ``--map`` gave."""

    corpus: str
    split: str
    model_revision: str
    segments: int
    seconds: float | None
    mapping: Mapping[str, str]

    def __str__(self) -> str:
        seconds = "extractions made earlier" if self.seconds is None else f"{self.seconds:.0f} s"
        return f"{self.segments} segments, {seconds}, model revision {self.model_revision}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences in F1 from another run, by measure (:func:`.significance.compare`)."""

    file: str
    model_revision: str
    differences: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of formatted cells, with a note on how to read it."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str

    def markdown(self) -> str:
        """The table as Markdown under its title, first column left-aligned, the others right-aligned."""
        lines = (self.columns, ("---", *("---:" for _ in self.columns[1:])), *self.rows)
        return f"## {self.title}\n\n{self.note}\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


@dataclass(frozen=True, slots=True)
class Report:
    """The scores of a run with their intervals (:func:`training.evaluation.significance.intervals`)."""

    run: Run
    scores: Scores
    intervals: Mapping[str, Interval | None]
    resamples: int
    comparison: Comparison | None = None

    def as_dict(self) -> dict[str, Any]:
        """The whole report as a JSON object. ``micro.f1`` is the strict micro F1."""
        run, other = self.run, self.comparison
        return {
            "corpus": run.corpus,
            "split": run.split,
            "map": dict(run.mapping),
            "model_revision": run.model_revision,
            "seconds": run.seconds,
            "segments": run.segments,
            **self.scores.as_dict(),
            "intervals": dict(self.intervals),
            "bootstrap": {"level": LEVEL, "resamples": self.resamples, "seed": SEED},
            "against": other
            and {
                "file": other.file,
                "model_revision": other.model_revision,
                "differences": {
                    name: {"value": d.value, "interval": d.interval, "p": d.p} for name, d in other.differences.items()
                },
            },
        }

    def overview(self) -> Table:
        """Scores over all types."""
        scores, none = self.scores, ("", "")
        rows = [
            _row("micro", scores.micro),
            ("  95 %", *(_within(self.intervals[f"micro.{name}"]) for name in ("precision", "recall", "f1")), *none),
            ("macro", *none, f"{scores.macro_f1:.4f}", *none),
            ("  95 %", *none, _within(self.intervals["macro.f1"]), *none),
            _row("nested alone", scores.nested),
            ("  95 %", *none, _within(self.intervals["nested.f1"]), *none),
            _row("boundary only", scores.boundaries),
            _row("type only", scores.overlaps),
        ]
        note = (
            "Strict, except the last two: boundary only ignores types; type only takes what overlaps a mention of the "
            "type for right."
        )
        return Table("Overview", ("", "precision", "recall", "F1", "gold", "predicted"), rows, note)

    def types(self) -> Table:
        """Strict scores of each type, most frequent first."""
        rows = [(*_row(key, s), _within(self.intervals[f"types.{key}.f1"])) for key, s in self._by_gold()]
        return Table("Types", ("", "precision", "recall", "F1", "gold", "predicted", "95 % of F1"), rows, "Strict.")

    def lengths(self) -> Table:
        """Strict scores by mention length."""
        rows = [_row(name, score) for name, score in self._by_length()]
        note = "Strict. A piece is a run of letters, a run of digits or any other character."
        return Table("Lengths", ("pieces", "precision", "recall", "F1", "gold", "predicted"), rows, note)

    def errors(self) -> Table:
        """Numbers of correct mentions and of each kind of error."""
        micro = self.scores.micro
        rows = [
            (kind, *_part(said, micro.predicted), *_part(true, micro.gold)) for kind, said, true in self._by_error()
        ]
        note = (
            "type: has the span of a mention of another type. boundary: overlaps a mention of its type. boundary and "
            "type: overlaps mentions of other types only. spurious, missed: overlaps none."
        )
        return Table("Errors", ("", "predicted", "share", "gold", "share"), rows, note)

    def against(self) -> Table | None:
        """The differences from the other run; None without one."""
        if self.comparison is None:
            return None
        rows = [
            (name.removesuffix(".f1").removeprefix("types."), f"{d.value:+.4f}", _within(d.interval, "+"), f"{d.p:.4f}")
            for name, d in self.comparison.differences.items()
        ]
        note = (
            "How much higher the strict F1 of this run is. p: two-sided approximate randomisation test, not corrected "
            "for the number of rows."
        )
        title = f"Against model revision {self.comparison.model_revision}"
        return Table(title, ("", "difference", "95 %", "p"), rows, note)

    def markdown(self) -> str:
        """All tables, with links to the plots."""
        mapped = ", ".join(f"{label} {f'as {key}' if key else 'left out'}" for label, key in self.run.mapping.items())
        parts = [
            f"# {self.run.corpus} {self.run.split}\n",
            f"{self.scores.documents} texts, {self.run}. Intervals: percentile bootstrap over texts, "
            f"{self.resamples} resamples, seed {SEED}.\n",
            *([f"Labels: {mapped}.\n"] if mapped else []),
            self.overview().markdown(),
            self.types().markdown(),
            "![F1 of each type](types.png)\n",
            self.lengths().markdown(),
            "![Scores by length](lengths.png)\n",
            self.errors().markdown(),
            "![Errors](errors.png)\n",
        ]
        if (against := self.against()) is not None:
            parts.append(against.markdown())
        return "\n".join(parts)

    def save(self, folder: Path) -> None:
        """Writes JSON, Markdown and plots into the folder (see :func:`prepare`)."""
        (folder / SCORES).write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
        (folder / PAGE).write_text(self.markdown(), encoding="utf-8")
        _plot(folder / "types.png", self._plot_types, height=1.5 + 0.3 * len(self.scores.types))
        _plot(folder / "lengths.png", self._plot_lengths)
        _plot(folder / "errors.png", self._plot_errors)

    def _by_gold(self) -> list[tuple[str, Score]]:
        return sorted(self.scores.types.items(), key=lambda item: (-item[1].gold, item[0]))

    def _by_length(self) -> list[tuple[str, Score]]:
        return [(name, self.scores.lengths.get(name, Score())) for name in LENGTHS]

    def _by_error(self) -> list[tuple[str, int | None, int | None]]:
        """Each kind of error with its number of predicted and gold mentions; None where a side cannot have it."""
        micro, errors = self.scores.micro, self.scores.errors
        return [
            ("right", micro.correct, micro.correct),
            *((kind, errors.predicted[kind], errors.gold[kind]) for kind in NEAR),
            ("spurious", errors.predicted["spurious"], None),
            ("missed", None, errors.gold["missed"]),
        ]

    def _plot_types(self, axes: Axes) -> None:
        types = self._by_gold()[::-1]  # bars are drawn from the bottom up
        axes.barh([f"{key} ({s.gold})" for key, s in types], [s.f1 for _, s in types], color=_SHADES[0])
        for at, (key, _) in enumerate(types):
            if (interval := self.intervals[f"types.{key}.f1"]) is not None:
                axes.plot(interval, (at, at), color=_SHADES[2], marker="|")
        axes.set(xlim=(0, 1), xlabel="strict F1 with its 95 % interval", ylabel="type (gold mentions)")

    def _plot_lengths(self, axes: Axes) -> None:
        lengths = self._by_length()
        for i, name in enumerate(("precision", "recall", "f1")):
            places = [at + 0.27 * (i - 1) for at in range(len(lengths))]
            label = "F1" if name == "f1" else name
            axes.bar(places, [getattr(s, name) for _, s in lengths], 0.25, color=_SHADES[i], label=label)
        axes.set_xticks(range(len(lengths)), [f"{name} ({s.gold})" for name, s in lengths])
        axes.set(ylim=(0, 1), xlabel="pieces (gold mentions)")
        _legend(axes)

    def _plot_errors(self, axes: Axes) -> None:
        wrong = self._by_error()[1:][::-1]
        for i, side in enumerate(("predicted", "gold")):
            places = [at + 0.4 * (0.5 - i) for at in range(len(wrong))]
            axes.barh(places, [counts[i] or 0 for _, *counts in wrong], 0.38, color=_SHADES[2 * i], label=side)
        axes.set_yticks(range(len(wrong)), [kind for kind, *_ in wrong])
        axes.set(xlabel="wrong or missed mentions")
        _legend(axes)


def prepare(folder: Path) -> None:
    """Creates a report's folder. Raises ReportError if it cannot be written to: better before a long run than after."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ReportError("report: needs matplotlib; `make setup` installs it, or `pip install matplotlib`")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SCORES).open("a").close()
    except OSError as error:
        raise ReportError(f"report: cannot write into {folder} ({error.strerror}); name another folder") from None


def _plot(file: Path, draw: Callable[[Axes], None], height: float = 4.0) -> None:
    from matplotlib.figure import Figure  # not pyplot: no display, no state

    figure = Figure(figsize=(8.0, height), layout="constrained")
    draw(figure.subplots())
    figure.savefig(file, dpi=150)


def _legend(axes: Axes) -> None:
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False
    )  # above the plot, clear of the bars


def _row(name: str, s: Score | NestedScore) -> tuple[str, ...]:
    return (name, f"{s.precision:.4f}", f"{s.recall:.4f}", f"{s.f1:.4f}", str(s.gold), str(s.predicted))


def _within(interval: Interval | None, sign: str = "") -> str:
    return "" if interval is None else f"{interval.low:{sign}.3f} to {interval.high:{sign}.3f}"


def _part(count: int | None, whole: int) -> tuple[str, str]:
    """A count and its share of the whole; blank without a count."""
    return ("", "") if count is None else (str(count), f"{count / whole:.1%}" if whole else "")
