"""What joint training and a line for each type are worth: the same base trained in several ways, at equal compute.

    BIOBRACKET_CORPORA=… make ablation ARGS='--tokens 200000 --segments 200'

Every variant starts from the base model and sees as many tokens in training: both languages together, each alone, each
corpus alone, and both languages with labelled brackets (all types in one line, ``[text | type]``). Each is scored
greedily, with no calibration, on the first texts of every ``test`` split: also on corpora that it never saw. Intervals
and differences are those of ``biobracket evaluate``.

A run that was cut off goes on where it was: what is finished is in the folder of ``--out``.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from benchmarks.hardware import hardware, make_command
from services.extractor import Extractor
from services.generation.engine import Engine, TagRequest
from services.selection.selector import Selector
from shared.messages import TaggedLine
from shared.model.base_model import load_base, load_tokenizer
from shared.model.folders import adapter_folder
from shared.selection.calibration import Calibration
from shared.settings import Settings
from shared.text.grammar import CopyTokens
from shared.text.pieces import split
from shared.text.segmentation import segment
from shared.text.tagging import encode
from training.ablations.labelled import Walk, header
from training.config import DEFAULT, GeneratorConfig
from training.data.corpora import Example, corpus_folder, documents_of, read
from training.evaluation import predictions
from training.evaluation.scores import Scores, score_all
from training.evaluation.significance import Difference, Interval, compare, intervals
from training.job import run_here
from training.tuning.loop import MANIFEST

err = Console(stderr=True)

JOINT = "joint"


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to train."""

    name: str
    corpora: tuple[str, ...]
    scheme: str = "per-type"


VARIANTS = (
    Variant(JOINT, ("genia", "cmeee_v2", "bc5cdr")),
    Variant("Chinese only (CMeEE-V2)", ("cmeee_v2",)),
    Variant("English only", ("genia", "bc5cdr")),
    Variant("GENIA only", ("genia",)),
    Variant("BC5CDR only", ("bc5cdr",)),
    Variant("joint, labelled brackets", ("genia", "cmeee_v2", "bc5cdr"), "labelled"),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """A variant's F1 on a corpus, and how it differs from the joint one's."""

    f1: float
    interval: Interval | None
    difference: Difference | None


def main(
    out: Annotated[Path, typer.Option(help="Folder of the runs and of the report.")] = Path("runs/ablation"),
    tokens: Annotated[int, typer.Option(min=1000, help="Tokens that every variant is trained on.")] = 200_000,
    segments: Annotated[int, typer.Option(min=1, help="Segments of each test split that are scored.")] = 200,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="A field of the configuration of all variants; repeated.")
    ] = None,
) -> None:
    """Train and score all variants, and write ablation.md and ablation.json."""
    settings = Settings()
    tests = {name: _first(read(corpus_folder(name, settings), "test"), segments) for name in VARIANTS[0].corpora}
    scores: dict[str, dict[str, list[Scores]]] = {}
    for variant in VARIANTS:
        folder = out / variant.name.replace(" ", "-").replace(",", "").replace("(", "").replace(")", "")
        config = configuration(variant, tokens, overrides or ())
        if not (folder / MANIFEST).is_file():
            err.print(f"training: {variant.name}", highlight=False)
            run_here(config, settings, folder)
        scores[variant.name] = scored(variant, folder, settings, tests)
    report = {
        "command": make_command("ablation"),
        "hardware": hardware(),
        "tokens": tokens,
        "texts": {name: len(found) for name, found in tests.items()},
        "segments": segments,
        "variants": {
            name: {corpus: asdict(cell) for corpus, cell in row.items()} for name, row in cells(scores).items()
        },
    }
    (out / "ablation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "ablation.md").write_text(markdown(report), encoding="utf-8")
    sys.stdout.write(markdown(report))


def configuration(variant: Variant, tokens: int, overrides: Sequence[str]) -> GeneratorConfig:
    """The default configuration with the variant's corpora, which keep their shares relative to one another."""
    given = GeneratorConfig.load(DEFAULT, ["measure_every=0", "minutes=100000", f"max_tokens={tokens}", *overrides])
    corpora = {name: given.corpora[name] for name in variant.corpora}
    return given.model_copy(update={"corpora": corpora, "scheme": variant.scheme})


def _first(examples: Sequence[Example], segments: int) -> list[Example]:
    """The first texts, until there are so many segments."""
    chosen: list[Example] = []
    have = 0
    for example in examples:
        if have >= segments:
            break
        chosen.append(example)
        have += len(segment(example.text, example.lang, GeneratorConfig.model_fields["max_units"].default))
    return chosen


def scored(
    variant: Variant, folder: Path, settings: Settings, tests: dict[str, list[Example]]
) -> dict[str, list[Scores]]:
    """The scores of each text by corpus; predictions that are there already are not made again."""
    theirs = settings.model_copy(update={"adapter": str(folder)})
    extractor: Extractor | None = None
    found = {}
    for name, examples in tests.items():
        documents = documents_of(examples)
        file = folder / f"{name}.predictions.jsonl"
        if not file.is_file():
            extractor = extractor or _extractor(variant, theirs)
            err.print(f"scoring: {variant.name}, {name}", highlight=False)
            predictions.write(file, extractor.extract(documents))
        found[name] = score_all(examples, predictions.read(file, documents))
    return found


def _extractor(variant: Variant, settings: Settings) -> Extractor:
    if variant.scheme == "per-type":
        return Extractor.load(settings, calibration=Calibration.default())
    engine = LabelledEngine.load(settings)
    selector = Selector(Calibration.default())
    return Extractor(engine, selector, model_revision="labelled")


class LabelledEngine(Engine):
    """Greedy decoding of labelled brackets under their grammar, token by token, by ``transformers``."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, batch: int = 32) -> None:
        self._model, self._tokenizer, self._most = model, tokenizer, batch
        self._waiting: deque[tuple[TagRequest, Future[list[TaggedLine]]]] = deque()
        self._executor = ThreadPoolExecutor(1)
        self._tokens = CopyTokens(tokenizer)

    @classmethod
    def load(cls, settings: Settings) -> LabelledEngine:
        """Base model and adapter of the settings, merged."""
        from peft import PeftModel

        model = PeftModel.from_pretrained(load_base(settings, torch.float32), str(adapter_folder(settings)))
        merged = model.merge_and_unload().to(torch.bfloat16).eval()
        return cls(merged, load_tokenizer(settings))

    def submit(self, request: TagRequest) -> Future[list[TaggedLine]]:
        """See :class:`services.generation.engine.Engine`; a line of one type has those of its mentions."""
        future: Future[list[TaggedLine]] = Future()
        self._waiting.append((request, future))
        self._executor.submit(self._batch)
        return future

    def _batch(self) -> None:
        """The waiting ones; nothing where those before had them all."""
        batch = []
        while self._waiting and len(batch) < self._most:
            batch.append(self._waiting.popleft())
        if not batch:
            return
        try:
            found = self._decode([request for request, _ in batch])
        except Exception as error:
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), lines in zip(batch, found, strict=True):
            future.set_result(lines)

    @torch.inference_mode()
    def _decode(self, requests: Sequence[TagRequest]) -> list[list[TaggedLine]]:
        pieces = [split(request.segment.text) for request in requests]
        walks = [
            Walk(self._tokens, found, request.types, request.segment.lang)
            for request, found in zip(requests, pieces, strict=True)
        ]
        prompts = [
            [*self._tokens.prefix(found), *header(self._tokens, request.types, request.segment.lang)]
            for request, found in zip(requests, pieces, strict=True)
        ]
        longest, pad = max(map(len, prompts)), self._tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        end = self._tokenizer.eos_token_id

        def allowed(row: int, sent: torch.Tensor) -> list[int]:
            walk = walks[row]
            if len(sent) > longest and not walk.done:
                walk.feed(int(sent[-1]))
            return walk.options() or [end]

        self._model.generate(
            ids,
            attention_mask=mask,
            prefix_allowed_tokens_fn=allowed,
            do_sample=False,
            max_new_tokens=24 * longest,  # a bound that no line reaches
            eos_token_id=end,
            pad_token_id=pad,
        )
        return [
            [
                _line(request, key, [(found.cores[s], found.ends[e - 1]) for s, e, type_ in walk.spans if type_ == key])
                for key in request.types
            ]
            for request, found, walk in zip(requests, pieces, walks, strict=True)
        ]


def _line(request: TagRequest, key: str, spans: list[tuple[int, int]]) -> TaggedLine:
    tagged = encode(request.segment.text, spans)  # one line: mentions of one walk do not cross
    return TaggedLine(
        segment=request.segment, type=key, tagged=tagged[0] if tagged else "", presence=1.0 if spans else 0.0
    )


def cells(scores: dict[str, dict[str, list[Scores]]]) -> dict[str, dict[str, Cell]]:
    """The table: by variant and corpus."""
    return {
        name: {
            corpus: Cell(
                sum(found, Scores()).micro.f1,
                intervals(found)["micro.f1"],
                None if name == JOINT else compare(found, scores[JOINT][corpus])["micro.f1"],
            )
            for corpus, found in row.items()
        }
        for name, row in scores.items()
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a table: F1 with its interval, below it the difference from the joint variant."""
    corpora = list(report["texts"])
    lines = [
        f"    {report['command']}",
        "",
        f"{_machine(report['hardware'])}. {report['tokens']:,} training tokens each; "
        + ", ".join(f"{count} texts of {name}" for name, count in report["texts"].items())
        + " `test`. F1 with 95 % intervals; in brackets the difference from joint with its interval and p value.",
        "",
        "| variant | " + " | ".join(corpora) + " |",
        "|---|" + "---|" * len(corpora),
    ]
    for name, row in report["variants"].items():
        shown = []
        for corpus in corpora:
            cell = row[corpus]
            text = f"{cell['f1']:.3f}{_range(cell['interval'])}"
            if cell["difference"]:
                value = cell["difference"]
                text += f" [{value['value']:+.3f}{_range(value['interval'])}, p {value['p']:.3f}]"
            shown.append(text)
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def _machine(hardware: dict[str, Any]) -> str:
    return hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores"


def _range(interval: Sequence[float] | None) -> str:
    return f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""


if __name__ == "__main__":
    typer.run(main)
