"""What each part of the selector is worth: the same candidates, decided in several ways.

    BIOBRACKET_CORPORA=… BIOBRACKET_SELECTOR=… make selectors ARGS='--dev genia=300,cmeee_v2=150,bc5cdr=50'

The generator's output for the first texts of each corpus's ``dev`` and ``test`` is kept in the file ``--lines``. Each
way of deciding is calibrated on the ``dev`` texts, with its own thresholds, and scored on the ``test`` texts:
strict F1 with intervals, differences from the generator's confidence alone, boundary errors, precision and boundary
errors with thresholds moved until recall equals that of confidence alone, and the expected calibration error on
candidates that no calibration has seen.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.hardware import hardware, make_command
from services.extractor import Extractor
from services.pipeline.assembly import merge
from services.selection.overlaps import Scored, keep
from services.selection.selector import Selector
from shared.messages import Candidate, Entity
from shared.model.base_model import load_tokenizer
from shared.model.loading import load_merged
from shared.selection.calibration import Calibration, Judgement, logit
from shared.selection.exemplars.index import ExemplarIndex
from shared.selection.selector_folder import SELECTOR_FILE, index_folder, selector_folder
from shared.selection.span_encoder import SpanEncoder
from shared.settings import Settings
from shared.text.grammar import CopyTokens
from training.ablations.questions import ask
from training.data.corpora import Example, documents_of, read_all
from training.evaluation.scores import Scores, Span, score
from training.evaluation.significance import Difference, Interval, compare, intervals
from training.selector.calibration import Bin, Observation, expected_calibration_error, fit, reliability

err = Console(stderr=True)

_EXTREME = logit(1.0)
TEXTS = "genia=300,cmeee_v2=150,bc5cdr=50,ccks2017=50"


class Known(NamedTuple):
    """What is known of a candidate. ``prototype``: how much nearer it is to the mean of the accepted exemplars of its
    type than to that of the rejected ones, a difference of cosines; 0 without exemplars. ``others``:
    log-odds by other models that are compared, by name.
    """

    judgement: Judgement
    prototype: float
    others: Mapping[str, float]


Way = Callable[[Known], Judgement]
Heads = Callable[[Sequence[Candidate]], list[float]]
Taken = Callable[[float], list[set[Span]]]


def only(*terms: str) -> Way:
    """By these terms of a judgement alone."""

    def way(known: Known) -> Judgement:
        judged = known.judgement
        left = Judgement(judged.confidence if "confidence" in terms else 0.5, judged.greedy)
        return left._replace(**{term: getattr(judged, term) for term in terms})

    return way


def _prototypes_and(way: Way) -> Way:
    return lambda known: way(known)._replace(vote=known.prototype)


CONFIDENCE = "confidence"
WAYS: dict[str, Way] = {
    CONFIDENCE: only("confidence"),
    "head alone": only("head"),
    "neighbours alone": only("vote"),
    "prototypes alone": _prototypes_and(only()),
    "words alone": only("words"),
    "confidence and margin": only("confidence", "margin"),
    "confidence and neighbours": only("confidence", "vote"),
    "confidence and prototypes": _prototypes_and(only("confidence")),
    "confidence and words": only("confidence", "words"),
    "confidence and head": only("confidence", "head"),
    "all but margin": only("confidence", "head", "vote", "words"),
    "all but head": only("confidence", "margin", "vote", "words"),
    "all but neighbours": only("confidence", "margin", "head", "words"),
    "all but words": only("confidence", "margin", "head", "vote"),
    "all": lambda known: known.judgement,
}
OF_NEIGHBOURS = {name for name in WAYS if "neighbours" in name or "prototypes" in name}  # nothing without an index
GREEDY = "all, greedy candidates only"


@dataclass(frozen=True, slots=True)
class Judged:
    """The candidates of a split's first texts, by text, with what is known of each, and the gold mentions."""

    examples: list[Example]
    gold: list[set[Span]]
    candidates: list[list[tuple[Candidate, Known]]]


@dataclass(frozen=True, slots=True)
class Cell:
    """The scores of one way of deciding on a corpus.

    ``equal_recall``: precision and boundary errors at the recall of confidence alone; none where it cannot be reached.
    """

    precision: float
    recall: float
    f1: float
    interval: Interval | None
    difference: Difference | None
    boundary: int
    equal_recall: tuple[float, int] | None
    calibration_error: float
    reliability: list[Bin]


def main(
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("runs/selectors"),
    lines: Annotated[
        Path, typer.Option(help="File of the generator's lines, as of `biobracket evaluate --lines`.")
    ] = Path("runs/lines.sqlite"),
    dev: Annotated[str, typer.Option(help="Corpora and the texts of their dev splits to calibrate on.")] = TEXTS,
    test: Annotated[str, typer.Option(help="Corpora and the texts of their test splits that are scored.")] = TEXTS,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            help="Another selector to be compared with, or the adapter of `train generator --set scheme=question`: "
            "`name=folder`; repeated."
        ),
    ] = None,
) -> None:
    """Make the candidates, decide in every way, and write selectors.md, selectors.json and reliability.png."""
    settings = Settings()
    selector = Selector.load(settings, Calibration.default())
    others = dict(_beside(given, settings) for given in beside or ())
    lines.parent.mkdir(parents=True, exist_ok=True)
    generator = Extractor.load(settings.model_copy(update={"selector": ""}), Calibration.default(), lines)
    judged = {}
    for split, given in (("dev", dev), ("test", test)):
        for name, examples in read_all(given, split, settings).items():
            err.print(f"{name} {split}: {len(examples)} texts", highlight=False)
            found = generator.candidates(documents_of(examples))
            judged[name, split] = _judged(examples, found, settings, selector, others)
    compared = {f"confidence and {name}": _by(name) for name in others}
    folder = selector_folder(settings)
    idle = OF_NEIGHBOURS if folder is None or not index_folder(folder).is_dir() else set()
    ways = {name: (change, False) for name, change in (WAYS | compared).items() if name not in idle}
    ways[GREEDY] = (WAYS["all"], True)
    table: dict[str, dict[str, Cell]] = {}
    base: dict[str, list[Scores]] = {}
    for way, (change, greedy) in ways.items():
        calibration = _calibrated([j for (_, split), j in judged.items() if split == "dev"], change, greedy)
        table[way] = {}
        for (name, split), found in judged.items():
            if split == "test":
                taken = _taken(found, calibration, change, greedy)
                scores = _scores(found, taken(0.0))
                base.setdefault(name, scores)
                table[way][name] = _cell(found, taken, scores, base[name], calibration, change, greedy)
    report = {
        "command": make_command("selectors"),
        "hardware": hardware(),
        "texts": {f"{name} {split}": len(found.examples) for (name, split), found in judged.items()},
        "ways": {way: {name: _as_dict(cell) for name, cell in row.items()} for way, row in table.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "selectors.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    text = markdown(report["command"], report["texts"], table)
    (out / "selectors.md").write_text(text, encoding="utf-8")
    plot(table, out / "reliability.png")
    sys.stdout.write(text)


def _beside(given: str, settings: Settings) -> tuple[str, Heads]:
    """A name, and what gives the log-odds of candidates by the model in its folder."""
    name, _, place = given.partition("=")
    folder = Path(place)
    if not (name and (folder / "adapter_config.json").is_file()):
        raise typer.BadParameter(f"`{given}` is not `name=folder` of a trained model", param_hint="--beside")
    if (folder / SELECTOR_FILE).is_file():
        encoder = SpanEncoder.load(settings, folder)
        return name, lambda candidates: encoder.encode(candidates).logits.tolist()
    model, tokens = load_merged(settings, folder), CopyTokens(load_tokenizer(settings))
    return name, lambda candidates: ask(model, tokens, candidates)


def _by(name: str) -> Way:
    return lambda known: only("confidence")(known)._replace(head=known.others[name])


def _judged(
    examples: list[Example],
    found: Sequence[Sequence[Candidate]],
    settings: Settings,
    selector: Selector,
    others: Mapping[str, Heads],
) -> Judged:
    everything = [candidate for candidates in found for candidate in candidates]
    told = {other: heads(everything) for other, heads in others.items()}
    of_others = [{other: logits[i] for other, logits in told.items()} for i in range(len(everything))]
    known = map(Known, selector.judge(everything), _prototypes(everything, selector, settings), of_others)
    gold = [{(m.start, m.end, m.type) for m in example.mentions} for example in examples]
    return Judged(examples, gold, [[(candidate, next(known)) for candidate in candidates] for candidates in found])


def _prototypes(candidates: Sequence[Candidate], selector: Selector, settings: Settings) -> list[float]:
    folder = selector_folder(settings)
    if selector.encoder is None or folder is None or not index_folder(folder).is_dir():
        return [0.0] * len(candidates)
    sums: dict[tuple[str, bool], NDArray[np.float64]] = {}
    for vectors, exemplars in ExemplarIndex.load(index_folder(folder), encoder=None).batches():
        for vector, exemplar in zip(vectors, exemplars, strict=True):
            key = exemplar.type, exemplar.accepted
            sums[key] = sums.get(key, 0.0) + vector.astype(np.float64)
    means = {key: total / max(float(np.linalg.norm(total)), 1e-9) for key, total in sums.items()}
    embeddings = selector.encoder.encode(candidates).embeddings
    none = np.zeros(embeddings.shape[1])
    return [
        float(vector @ (means.get((c.type, True), none) - means.get((c.type, False), none)))
        for c, vector in zip(candidates, embeddings, strict=True)
    ]


def _observations(found: Judged, change: Way, greedy: bool) -> list[Observation]:
    return [
        Observation(c.type, change(known), (c.start, c.end, c.type) in gold)
        for gold, candidates in zip(found.gold, found.candidates, strict=True)
        for c, known in candidates
        if c.greedy or not greedy
    ]


def _calibrated(found: Sequence[Judged], change: Way, greedy: bool) -> Calibration:
    gold = Counter(type_ for j in found for spans in j.gold for _, _, type_ in spans)
    return fit([o for j in found for o in _observations(j, change, greedy)], gold)


def _taken(found: Judged, calibration: Calibration, change: Way, greedy: bool) -> Taken:
    """The entities kept of each text, with all thresholds raised by so many log-odds."""
    scored = [
        [
            (logit(probability) - logit(calibration.threshold(c.type)), Scored(c, probability))
            for c, known in candidates
            if c.greedy or not greedy
            for probability in [calibration.probability(c.type, change(known))]
        ]
        for candidates in found.candidates
    ]

    def taken(raised: float) -> list[set[Span]]:
        kept = [_by_segment([one for above, one in text if above >= raised]) for text in scored]
        merged = [merge(e.text, entities)[0] for e, entities in zip(found.examples, kept, strict=True)]
        return [{(e.start, e.end, e.type) for e in entities} for entities in merged]

    return taken


def _scores(found: Judged, taken: Sequence[set[Span]]) -> list[Scores]:
    return [
        score(example.text, gold, spans) for example, gold, spans in zip(found.examples, found.gold, taken, strict=True)
    ]


def at_recall(gold: Sequence[set[Span]], taken: Taken, correct: int) -> list[set[Span]] | None:
    """The entities kept with the highest thresholds that leave so many correct; None if there are never that many."""

    def enough(found: Sequence[set[Span]]) -> bool:
        return sum(len(right & spans) for right, spans in zip(gold, found, strict=True)) >= correct

    low, high = -2 * _EXTREME, 2 * _EXTREME  # the range of differences of clipped log-odds
    best = taken(low)
    if not enough(best):
        return None
    while high - low > 0.01:
        raised = (low + high) / 2
        found = taken(raised)
        if enough(found):
            low, best = raised, found
        else:
            high = raised
    return best


def _by_segment(kept: Sequence[Scored]) -> list[Entity]:
    segments: dict[int, list[Scored]] = {}
    for one in kept:
        segments.setdefault(one.candidate.segment.index, []).append(one)
    return [entity for scored in segments.values() for entity in keep(scored)]


def _cell(
    found: Judged,
    taken: Taken,
    scores: Sequence[Scores],
    base: Sequence[Scores],
    calibration: Calibration,
    change: Way,
    greedy: bool,
) -> Cell:
    whole = sum(scores, Scores())
    level = at_recall(found.gold, taken, sum(base, Scores()).micro.correct)
    equal = None if level is None else sum(_scores(found, level), Scores())
    observed = _observations(found, change, greedy)
    probabilities = [calibration.probability(o.type, o.known) for o in observed]
    correct = [o.correct for o in observed]
    return Cell(
        whole.micro.precision,
        whole.micro.recall,
        whole.micro.f1,
        intervals(scores)["micro.f1"],
        None if scores is base else compare(scores, base)["micro.f1"],
        whole.errors.predicted["boundary"],
        None if equal is None else (equal.micro.precision, equal.errors.predicted["boundary"]),
        expected_calibration_error(probabilities, correct),
        reliability(probabilities, correct, 10),
    )


def _as_dict(cell: Cell) -> dict[str, Any]:
    found = {name: getattr(cell, name) for name in Cell.__slots__}
    difference = found["difference"]
    found["difference"] = difference and {name: getattr(difference, name) for name in Difference.__slots__}
    return found


def plot(table: dict[str, dict[str, Cell]], file: Path) -> None:
    """A reliability diagram per corpus, by confidence alone and by all terms; dot size shows the candidates."""
    from matplotlib.figure import Figure

    corpora = list(table[CONFIDENCE])
    figure = Figure(figsize=(4 * len(corpora), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(corpora), squeeze=False)[0], corpora, strict=True):
        axes.plot([0, 1], [0, 1], color="0.8")
        for way in (CONFIDENCE, "all"):
            found = table[way][name].reliability
            given, right = [point.probability for point in found], [point.correct for point in found]
            axes.plot(given, right, alpha=0.7, label=way)
            axes.scatter(given, right, [2 * point.size**0.5 for point in found])
        axes.set(title=name, xlabel="probability", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
        axes.legend()
    figure.savefig(file, dpi=100)


def markdown(command: str, texts: dict[str, int], table: dict[str, dict[str, Cell]]) -> str:
    """The report as a table per corpus."""
    lines = [f"    {command}", "", ", ".join(f"{count} texts of {name}" for name, count in texts.items()) + ".", ""]
    for name in next(iter(table.values())):
        lines += [
            f"**{name}**",
            "",
            "| decided by | precision | recall | F1 | difference | boundary errors | the same at equal recall | "
            "calibration error |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for way, row in table.items():
            cell = row[name]
            f1 = f"{cell.f1:.3f}{_range(cell.interval)}"
            other = cell.difference
            level = f"{cell.equal_recall[1]}, precision {cell.equal_recall[0]:.3f}" if cell.equal_recall else ""
            apart = f"{other.value:+.3f}{_range(other.interval)}, p {other.p:.3f}" if other else ""
            lines.append(
                f"| {way} | {cell.precision:.3f} | {cell.recall:.3f} | {f1} | {apart} | {cell.boundary} | "
                f"{level} | {cell.calibration_error:.3f} |"
            )
        lines.append("")
    return "\n".join(lines)


def _range(interval: Interval | None) -> str:
    return f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""


if __name__ == "__main__":
    typer.run(main)
