"""The commands that make models: ``biobracket train …``, ``candidates``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

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

train = typer.Typer(help="Make models.", no_args_is_help=True)


@train.command("generator")
def train_generator(
    folder: Annotated[Path, typer.Option("--out", help="Folder of the model; a run of it that was cut off goes on.")],
    config_file: Annotated[
        str, typer.Option("--config", help="A YAML file, or the name of one in training/configs.")
    ] = "gemma-3-270m",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A field of it and its value, `minutes=30`; repeated.")
    ] = None,
    on_ray: Annotated[
        bool, typer.Option("--ray/--no-ray", help="As a Ray Train job, or in this process alone.")
    ] = True,
) -> None:
    """Fine-tune a generator on corpora of both languages. The fields of the configuration: training/config.py."""
    with clear_errors():
        from services.cli.dev_scores import DevScores
        from training import job
        from training.config import CONFIGS, GeneratorConfig
        from training.tuning.progress import plot

        named = CONFIGS / f"{config_file}.yaml"
        config = GeneratorConfig.load(named if named.is_file() else Path(config_file), overrides or ())
        settings = Settings()
        measure = DevScores(settings, {name: c.types for name, c in config.corpora.items()}, config.measure_texts)
        (job.run if on_ray else job.run_here)(config, settings, folder, measure)
        plot(folder)
    out.print(f"{folder}; next: BIOBRACKET_ADAPTER={folder} biobracket train calibration", highlight=False)


@train.command("selector")
def train_selector(
    folder: Annotated[
        Path, typer.Option("--out", help="Folder of the selector; a run of it that was cut off goes on.")
    ],
    config_file: Annotated[
        str, typer.Option("--config", help="A YAML file, or the name of one in training/configs.")
    ] = "selector",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A field of it and its value, `minutes=30`; repeated.")
    ] = None,
    on_ray: Annotated[
        bool, typer.Option("--ray/--no-ray", help="As a Ray Train job, or in this process alone.")
    ] = True,
) -> None:
    """Train the selector's span encoder on corpora of both languages. The fields: training/config.py."""
    with clear_errors():
        from training import job
        from training.config import CONFIGS, SelectorConfig
        from training.tuning.progress import plot

        named = CONFIGS / f"{config_file}.yaml"
        config = SelectorConfig.load(named if named.is_file() else Path(config_file), overrides or ())
        (job.run if on_ray else job.run_here)(config, Settings(), folder)
        plot(folder)
    out.print(f"{folder}; next: BIOBRACKET_SELECTOR={folder} biobracket train calibration", highlight=False)


@train.command("gazetteer")
def train_gazetteer(corpora: CorporaOption = "genia,cmeee_v2,bc5cdr,ccks2017", split: SplitOption = "train") -> None:
    """Count which words are mentions, and save the counts beside the selector of the settings. They hold no text."""
    with clear_errors():
        from shared.selection.selector_folder import selector_folder
        from training.data.corpora import read_all
        from training.selector.gazetteer import count

        settings = Settings()
        folder = selector_folder(settings)
        if folder is None:
            fail("selector: none is set; name the one that the gazetteer is for in BIOBRACKET_SELECTOR")
        found = count(read_all(corpora, split, settings))
        found.save(folder)
    out.print(f"{len(found)} different words; saved in {folder}", highlight=False)


@train.command("calibration")
def train_calibration(
    corpora: CorporaOption = "genia,cmeee_v2,bc5cdr", split: SplitOption = "dev", lines: LinesOption = None
) -> None:
    """Fit confidence and thresholds, and save them beside the selector of the settings, or else beside the adapter."""
    with clear_errors():
        from services.extractor import Extractor
        from shared.selection.calibration import Calibration
        from shared.selection.selector_folder import calibration_file
        from training.data.corpora import documents_of, read_all
        from training.selector.calibration import Observation, expected_calibration_error, fit

        settings = Settings()
        file = calibration_file(settings)
        if file is None:
            fail("adapter: none is set; name the one to calibrate in BIOBRACKET_ADAPTER")
        asked = read_all(corpora, split, settings)
        extractor = Extractor.load(settings, Calibration.default(), lines)
        observations: list[Observation] = []
        gold: Counter[str] = Counter()
        for name, examples in asked.items():
            warn_trimmed(examples)
            with document_progress(documents := documents_of(examples), f"{name} {split}") as done:
                found = extractor.candidates(documents, done)
            truths = [{(m.start, m.end, m.type) for m in example.mentions} for example in examples]
            gold.update(type_ for truth in truths for _, _, type_ in truth)
            right = [(c.start, c.end, c.type) in truth for of, truth in zip(found, truths, strict=True) for c in of]
            everything = [c for of in found for c in of]
            judged = extractor.selector.judge(everything)
            observations += [Observation(c.type, of, y) for c, of, y in zip(everything, judged, right, strict=True)]
        calibration = fit(observations, gold)
        calibration.save(file)
        error = expected_calibration_error(
            [calibration.probability(o.type, o.known) for o in observations],
            [o.correct for o in observations],
        )
    out.print(
        f"{len(observations)} candidates, {sum(gold.values())} gold mentions; expected calibration error on them "
        f"{error:.3f}; saved {file}",
        highlight=False,
    )


def candidates(
    corpus: Annotated[str, typer.Option("--corpus", help="A folder, or a name below BIOBRACKET_CORPORA.")],
    file: Annotated[Path, typer.Option("--out", help="File of the candidates, one JSON object a line; without text.")],
    split: SplitOption = "train",
    folds: Annotated[int, typer.Option("--folds", min=1, help="Parts of the split, as the run was given.")] = 1,
    fold: Annotated[int, typer.Option("--fold", min=0, help="The part that it was not trained on, from 0.")] = 0,
    limit: LimitOption = 0,
    lines: LinesOption = None,
) -> None:
    """The generator's candidates on texts that it was not trained on, for `train selector --set candidates=[…]`."""
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
    out.print(f"{len(found)} candidates of {len(examples)} texts, {right} of them right; {file}", highlight=False)
