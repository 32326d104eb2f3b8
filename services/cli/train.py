"""The commands that train models: ``biobracket train …`` and ``candidates``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from services.cli.console import (
    CorporaOption,
    LimitOption,
    LinesOption,
    SplitOption,
    clear_errors,
    document_progress,
    fail,
    out,
    warn_trimmed,
)
from shared.settings import Settings

if TYPE_CHECKING:
    from training.config import GeneratorConfig, RunConfig, SelectorConfig
    from training.generator.task import Measure

Config = TypeVar("Config", bound="RunConfig")

train = typer.Typer(help="Train models, and fit what a selector needs.", no_args_is_help=True)


OutOption = Annotated[Path, typer.Option("--out", help="Folder of the model; an interrupted run in it is resumed.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a field of the configuration, `minutes=30`; repeatable.")
]
RayOption = Annotated[bool, typer.Option("--ray/--no-ray", help="Run as a Ray Train job, or in this process.")]
_CONFIG_HELP = "A YAML file, or the name of one in training/configs."


@train.command("generator")
def train_generator(
    folder: OutOption,
    config_file: Annotated[str, typer.Option("--config", help=_CONFIG_HELP)] = "gemma-3-270m",
    overrides: SetOption = None,
    on_ray: RayOption = True,
) -> None:
    """Fine-tune a generator on corpora of both languages. Fields of the configuration: docs/settings.md."""
    with clear_errors():
        from services.cli.dev_scores import DevScores
        from training.config import GeneratorConfig

        loaded = _config(GeneratorConfig, config_file, overrides)
        mappings = {name: corpus.types for name, corpus in loaded.corpora.items()}
        scores = DevScores(Settings(), mappings, loaded.measure_texts)
        _train(loaded, folder, on_ray, "BIOBRACKET_ADAPTER", scores)


@train.command("selector")
def train_selector(
    folder: OutOption,
    config_file: Annotated[str, typer.Option("--config", help=_CONFIG_HELP)] = "selector",
    overrides: SetOption = None,
    on_ray: RayOption = True,
) -> None:
    """Train a selector's span encoder on corpora of both languages. Fields of the configuration: docs/settings.md."""
    with clear_errors():
        from training.config import SelectorConfig

        _train(_config(SelectorConfig, config_file, overrides), folder, on_ray, "BIOBRACKET_SELECTOR")


def _config(kind: type[Config], named: str, overrides: Sequence[str] | None) -> Config:
    """The configuration of a file, or of that name in training/configs, with overrides."""
    from training.config import CONFIGS

    ours = CONFIGS / f"{named}.yaml"
    return kind.load(ours if ours.is_file() else Path(named), overrides or ())


def _train(
    config: GeneratorConfig | SelectorConfig, folder: Path, on_ray: bool, variable: str, measure: Measure | None = None
) -> None:
    """Train, plot the curves and say what comes next. ``variable``: the setting that takes the model."""
    from training import job
    from training.tuning.progress import plot

    (job.run if on_ray else job.run_here)(config, Settings(), folder, measure)
    plot(folder)
    out.print(f"{folder}; next: {variable}={folder} biobracket train calibration", highlight=False)


@train.command("gazetteer")
def train_gazetteer(corpora: CorporaOption = "genia,cmeee_v2,bc5cdr,ccks2017", split: SplitOption = "train") -> None:
    """Count how often words are mentions, and save the counts with BIOBRACKET_SELECTOR. They hold no text."""
    with clear_errors():
        from shared.model.digests import write_sums
        from shared.selection.gazetteer import GAZETTEER_FILE
        from shared.selection.selector_folder import selector_folder
        from training.data.corpora import read_all
        from training.selector.gazetteer import count

        settings = Settings()
        folder = selector_folder(settings)
        if folder is None:
            fail("selector: none is set; set BIOBRACKET_SELECTOR to the one that the gazetteer is for")
        gazetteer = count(read_all(corpora, split, settings))
        gazetteer.save(folder)
        write_sums(folder, GAZETTEER_FILE)
    out.print(f"{len(gazetteer)} different words; saved in {folder}", highlight=False)


@train.command("calibration")
def train_calibration(
    corpora: CorporaOption = "genia,cmeee_v2,bc5cdr", split: SplitOption = "dev", lines: LinesOption = None
) -> None:
    """Fit confidence and thresholds, and save them with the selector or, without one, with the adapter."""
    with clear_errors():
        from services.extractor import Extractor
        from shared.model.digests import write_sums
        from shared.selection.calibration import Calibration
        from shared.selection.selector_folder import calibration_file
        from training.data.corpora import documents_of, read_all
        from training.selector.calibration import Observation, expected_calibration_error, fit

        settings = Settings()
        file = calibration_file(settings)
        if file is None:
            fail("adapter: none is set; set BIOBRACKET_ADAPTER to the one to calibrate")
        splits = read_all(corpora, split, settings)
        extractor = Extractor.load(settings, Calibration.default(), lines)
        observations: list[Observation] = []
        gold: Counter[str] = Counter()
        for name, examples in splits.items():
            warn_trimmed(examples)
            with document_progress(documents := documents_of(examples), f"{name} {split}") as done:
                candidates = extractor.candidates(documents, done)
            truths = [{(m.start, m.end, m.type) for m in example.mentions} for example in examples]
            gold.update(type_ for truth in truths for _, _, type_ in truth)
            pairs = [(c, truth) for found, truth in zip(candidates, truths, strict=True) for c in found]
            judged = extractor.selector.judge([c for c, _ in pairs])
            observations += [
                Observation(c.type, known, (c.start, c.end, c.type) in truth)
                for (c, truth), known in zip(pairs, judged, strict=True)
            ]
        calibration = fit(observations, gold)
        calibration.save(file)
        write_sums(file.parent, file.name)
        error = expected_calibration_error(
            [calibration.probability(o.type, o.known) for o in observations],
            [o.correct for o in observations],
        )
    out.print(
        f"{len(observations)} candidates, {gold.total()} gold mentions; expected calibration error on them "
        f"{error:.3f}; saved {file}",
        highlight=False,
    )


def candidates(
    corpus: Annotated[str, typer.Option("--corpus", help="A folder, or the name of one in BIOBRACKET_CORPORA.")],
    file: Annotated[Path, typer.Option("--out", help="File for the candidates, as JSON lines; it holds no text.")],
    split: SplitOption = "train",
    folds: Annotated[int, typer.Option("--folds", min=1, help="Folds that the generator was trained with.")] = 1,
    fold: Annotated[int, typer.Option("--fold", min=0, help="The fold that it was not trained on, from 0.")] = 0,
    limit: LimitOption = 0,
    lines: LinesOption = None,
) -> None:
    """Write the generator's candidates on texts it was not trained on, for `train selector --set candidates=[…]`."""
    with clear_errors():
        from services.extractor import Extractor
        from shared.selection.calibration import Calibration
        from training.data.candidates import rows, write
        from training.data.corpora import corpus_folder, documents_of, part, read

        settings = Settings().model_copy(update={"selector": ""})
        place = corpus_folder(corpus, settings)
        examples = part(read(place, split), folds, fold, inside=True)[: limit or None]
        warn_trimmed(examples)
        extractor = Extractor.load(settings, Calibration.default(), lines)
        with document_progress(documents := documents_of(examples), f"{place.name} {split}") as done:
            found = rows(examples, extractor.candidates(documents, done))
        file.parent.mkdir(parents=True, exist_ok=True)
        write(file, found)
    right = sum(row.right for row in found)
    out.print(
        f"{len(found)} candidates of {len(examples)} texts, {right} of them correct; saved {file}", highlight=False
    )


def self_label(
    corpus: Annotated[str, typer.Option("--corpus", help="A folder, or the name of one in BIOBRACKET_CORPORA.")],
    types: Annotated[str, typer.Option("--types", help="Keys of the types to add, comma-separated.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder of the corpus that is written.")],
    split: SplitOption = "train",
    limit: LimitOption = 0,
    lines: LinesOption = None,
) -> None:
    """Add what the model itself finds of further types to a corpus, so that a line can ask for all of them together."""
    with clear_errors():
        import json

        from services.extractor import Extractor
        from shared import entity_types
        from shared.errors import DocumentError
        from training.data.corpora import corpus_folder, documents_of, read

        settings = Settings()
        place = corpus_folder(corpus, settings)
        asked = tuple(dict.fromkeys(key.strip() for key in types.split(",") if key.strip()))
        try:
            entity_types.check(asked)
        except DocumentError as error:
            fail(str(error))
        examples = read(place, split)[: limit or None]
        if known := sorted({key for example in examples for key in example.types} & set(asked)):
            fail(f"types: the corpus is annotated with {', '.join(known)}; leave out what it has")
        if folder.resolve() == place.resolve():
            fail("out: is the corpus itself; name another folder")
        extractor = Extractor.load(settings, lines=lines)
        documents = [document.model_copy(update={"types": asked}) for document in documents_of(examples)]
        with document_progress(documents, f"{place.name} {split}") as done:
            found = extractor.extract(documents, done)
        folder.mkdir(parents=True, exist_ok=True)
        added = 0
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for example, extraction in zip(examples, found, strict=True):
                own = [(m.start, m.end, m.type) for m in example.mentions]
                new = [(e.start, e.end, e.type) for e in extraction.entities]
                added += len(new)
                entities = [
                    {"start": start, "end": end, "type": type_, "text": example.text[start:end]}
                    for start, end, type_ in sorted(own + new)
                ]
                row = {"id": example.id, "text": example.text, "lang": example.lang, "entities": entities}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    out.print(f"{added} mentions added to {len(examples)} texts; saved {folder / split}.jsonl", highlight=False)
