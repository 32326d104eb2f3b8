"""The commands that make and measure models: ``biobracket train generator``, ``train calibration``, ``evaluate``."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from shared.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.extractor import Extractor
    from shared.messages import Candidate, Document, Extraction
    from training.corpora import Example
    from training.evaluation import Score, Scores, Span
    from training.generator import Report

out = Console()
err = Console(stderr=True)

train = typer.Typer(help="Make models.", no_args_is_help=True)

CorpusOption = Annotated[
    str, typer.Option("--corpus", help="A folder of corpora, or a name below the folder BIOBRACKET_CORPORA names.")
]
LimitOption = Annotated[int, typer.Option("--limit", min=0, help="Only the first so many texts; 0 takes all.")]


@train.command("generator")
def train_generator(
    folder: Annotated[Path, typer.Option("--out", help="Folder of the adapter.")],
    corpora: Annotated[
        str, typer.Option("--corpora", help="Corpora with their shares of tokens, `name=share` separated by commas.")
    ] = "genia=0.33,cmeee_v2=0.45,bc5cdr=0.22",
    minutes: Annotated[float, typer.Option(min=0.01, help="Minutes to train.")] = 60.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to train on at most.")] = 10**9,
    batch_tokens: Annotated[int, typer.Option(min=64, help="Tokens of a batch.")] = 2048,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches to a step.")] = 1,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapter.")] = 32,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = 8e-4,
    seed: Annotated[int, typer.Option(help="Seed of order and initial weights.")] = 13,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the model: minutes to begin, a fifth faster on a CPU.")
    ] = False,
    init: Annotated[Path | None, typer.Option("--init", help="Adapter to go on from.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut off.")] = False,
) -> None:
    """Fine-tune an adapter of the base model on corpora of both languages."""
    with _clear_errors():
        from training.generator import GeneratorConfig
        from training.generator import train as run

        config = GeneratorConfig(
            out=folder,
            corpora=_shares(corpora),
            minutes=minutes,
            max_tokens=max_tokens,
            batch_tokens=batch_tokens,
            accumulate=accumulate,
            rank=rank,
            alpha=2 * rank,
            learning_rate=learning_rate,
            seed=seed,
            compile=compiled,
            init=init,
            resume=resume,
        )
        with _progress() as progress:
            task = progress.add_task("preparing", total=60 * minutes)

            def report(now: Report) -> None:
                rate = now.tokens / now.seconds
                progress.update(
                    task,
                    completed=max(now.seconds, now.tokens / max_tokens * 60 * minutes),
                    description=f"step {now.step}, loss {now.loss:.4f}, {rate:.0f} tokens/s",
                )
                if now.dev is not None or not err.is_terminal:
                    dev = "".join(f", dev {name} {loss:.4f}" for name, loss in (now.dev or {}).items())
                    err.print(
                        f"step {now.step}: {now.tokens} tokens, {now.seconds:.0f} s, loss {now.loss:.4f}{dev}",
                        highlight=False,
                    )

            made = run(config, Settings(), report)
    err.print(f"adapter in {made}; next: BIOBRACKET_ADAPTER={made} biobracket train calibration", highlight=False)


@train.command("calibration")
def train_calibration(
    corpora: Annotated[str, typer.Option("--corpora", help="Corpora, separated by commas.")] = "genia,cmeee_v2,bc5cdr",
    split: Annotated[str, typer.Option("--split", help="Its file; never the one that is reported.")] = "dev",
    limit: LimitOption = 0,
) -> None:
    """Fit confidence and thresholds of the adapter that BIOBRACKET_ADAPTER names, and save them beside it."""
    with _clear_errors():
        from services.extractor import Extractor
        from shared.adapters import CALIBRATION_FILE, adapter_folder
        from shared.calibration import Calibration
        from training.calibration import Observation, expected_calibration_error, fit
        from training.corpora import corpus_folder, read

        settings = Settings()
        folder = adapter_folder(settings)
        if folder is None:
            _fail("adapter: none is set; name the one to calibrate in BIOBRACKET_ADAPTER")
        seen: dict[tuple[str, int, int, str], Candidate] = {}

        def keep(candidates: tuple[Candidate, ...]) -> None:
            for found in candidates:
                seen[found.segment.document_id, found.start, found.end, found.type] = found

        extractor = Extractor.load(settings, keep, Calibration.default())
        observations: list[Observation] = []
        gold: Counter[str] = Counter()
        for name in corpora.split(","):
            examples = _examples(read(corpus_folder(name, settings), split), limit)
            seen.clear()
            _extract(extractor, examples, f"{name} {split}")
            truth = {(str(i), m.start, m.end, m.type) for i, e in enumerate(examples) for m in e.mentions}
            gold.update(type_ for _, _, _, type_ in truth)
            observations += [
                Observation(key[3], found.generator_confidence, found.greedy, key in truth)
                for key, found in sorted(seen.items())
            ]
        calibration = fit(observations, gold)
        calibration.save(folder / CALIBRATION_FILE)
        error = expected_calibration_error(
            [calibration.probability(o.type, o.confidence, o.greedy) for o in observations],
            [o.correct for o in observations],
        )
    out.print(
        f"{len(observations)} candidates, {sum(gold.values())} gold mentions; expected calibration error on them "
        f"{error:.3f}; saved {folder / CALIBRATION_FILE}",
        highlight=False,
    )


def evaluate(
    corpus: CorpusOption,
    split: Annotated[str, typer.Option("--split", help="Its file: `test` for reporting, `dev` for tuning.")] = "test",
    limit: LimitOption = 0,
    mapping: Annotated[
        list[str] | None, typer.Option("--map", help="A label of the corpus and its type's key, `label=key`; repeated.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; `micro.f1` is the strict micro F1.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option("--predictions", help="File for the extractions, one JSON object a line.")
    ] = None,
) -> None:
    """Strict scores on a corpus: exact boundaries and type, at document offsets."""
    with _clear_errors():
        from services.extractor import Extractor
        from shared.adapters import model_revision
        from training.corpora import corpus_folder, read
        from training.evaluation import score

        settings = Settings()
        folder = corpus_folder(corpus, settings)
        types = dict(part.rpartition("=")[::2] for part in mapping or ())
        examples = _examples(read(folder, split, types or None), limit)
        extractor = Extractor.load(settings)
        begun = time.monotonic()
        extractions = _extract(extractor, examples, f"{folder.name} {split}")
        seconds = time.monotonic() - begun
        scores = score([_gold(e) for e in examples], [_predicted(e) for e in extractions])
        if save is not None:
            save.write_text("".join(e.model_dump_json() + "\n" for e in extractions), encoding="utf-8")
        segments = sum(e.counts.segments for e in extractions)
    if as_json:
        head = {
            "corpus": folder.name,
            "split": split,
            "model_revision": model_revision(settings),
            "seconds": seconds,
            "segments": segments,
        }
        print(json.dumps({**head, **scores.as_dict()}))
        return
    _print_scores(scores, f"{folder.name} {split}")
    out.print(
        f"{len(examples)} texts, {segments} segments, {seconds:.0f} s, model revision {model_revision(settings)}",
        highlight=False,
    )


def _examples(found: list[Example], limit: int) -> list[Example]:
    return found[:limit] if limit else found


def _extract(extractor: Extractor, examples: Sequence[Example], what: str) -> list[Extraction]:
    from shared.messages import Document

    # The place in the list is the id: a corpus may use one twice.
    documents: list[Document] = [
        Document(id=str(i), text=e.text, lang=e.lang, types=e.types) for i, e in enumerate(examples)
    ]
    with _progress() as progress:
        task = progress.add_task(what, total=sum(len(d.text) for d in documents))
        done: Callable[[Extraction], None] = lambda e: progress.advance(task, e.counts.characters)  # noqa: E731
        return extractor.extract(documents, done)


def _gold(example: Example) -> list[Span]:
    return [(m.start, m.end, m.type) for m in example.mentions]


def _predicted(extraction: Extraction) -> list[Span]:
    return [(e.start, e.end, e.type) for e in extraction.entities]


def _print_scores(scores: Scores, title: str) -> None:
    table = Table(title=title)
    for column in ("", "precision", "recall", "F1", "gold", "predicted"):
        table.add_column(column, justify="left" if not column else "right")

    def row(name: str, s: Any) -> None:
        table.add_row(name, f"{s.precision:.4f}", f"{s.recall:.4f}", f"{s.f1:.4f}", str(s.gold), str(s.predicted))

    by_gold: list[tuple[str, Score]] = sorted(scores.types.items(), key=lambda t: -t[1].gold)
    for key, of_type in by_gold:
        row(key, of_type)
    table.add_section()
    row("nested alone", scores.nested)
    row("micro", scores.micro)
    out.print(table)


def _shares(given: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in given.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share or 1.0)
        except ValueError:
            _fail(f"corpora: `{part}` is not `name=share`, such as genia=0.4")
        if not name.strip() or shares[name.strip()] <= 0:
            _fail(f"corpora: `{part}` needs a name and a share above 0")
    return shares


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Errors that name a setting and its remedy are printed without a traceback."""
    from shared.base_model import BaseModelError
    from shared.calibration import CalibrationError
    from training.corpora import CorpusError

    try:
        yield
    except (BaseModelError, CalibrationError, CorpusError, FileNotFoundError) as error:
        _fail(str(error))


def _progress() -> Any:
    from services.cli import _progress as progress

    return progress()


def _fail(message: str) -> NoReturn:
    err.print(f"error: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)
