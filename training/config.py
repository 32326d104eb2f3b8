"""Configurations of training runs: the fields of the files in ``training/configs``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from shared.errors import first_problem

CONFIGS = Path(__file__).resolve().parent / "configs"
DEFAULT = CONFIGS / "gemma-3-270m.yaml"


class ConfigError(ValueError):
    """A configuration is invalid; the message names the field and the remedy."""


class TrainingError(RuntimeError):
    """A run cannot continue; the message names the field and the remedy."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CorpusConfig(_Frozen):
    """A corpus in the mix."""

    share: float | None = Field(
        default=None, gt=0, description="Share of the tokens, relative to the others; by size if absent."
    )
    types: dict[str, str] | None = Field(
        default=None, description="Its labels and their keys in the inventory; those known for its name if absent."
    )


class RunConfig(_Frozen):
    """Fields of all runs. ``minutes`` or ``max_tokens`` ends a run, whichever comes first, at a learning rate of zero.

    A run that ``max_tokens`` ends is determined by its configuration, corpora and number of workers.
    """

    corpora: dict[str, CorpusConfig] = Field(min_length=1, description="Corpora by name or folder.")
    temperature: float = Field(
        default=2.0,
        ge=1,
        description="A corpus without a share gets tokens ** (1 / temperature): 1 is by size, higher is more even.",
    )

    rank: int = Field(default=32, ge=1, description="Rank of a new adapter; with `init`, that adapter's own applies.")
    alpha: int = Field(
        default=64, ge=1, description="A new adapter is scaled by alpha / rank; with `init`, its own scale applies."
    )
    init: Path | None = Field(
        default=None,
        description="Adapter to start from; with `tuning: full` it is merged into the base first.",
    )

    minutes: float = Field(default=60.0, gt=0, description="Minutes to train.")
    max_tokens: int = Field(default=10**12, ge=1, description="Tokens to train on, over all workers.")
    batch_tokens: int = Field(default=2048, ge=64, description="Tokens per batch; all batches have this shape.")
    accumulate: int = Field(default=1, ge=1, description="Batches per worker and optimiser step.")
    folds: int = Field(default=1, ge=1, description="Parts that each train split is divided into, for cross-fitting.")
    fold: int | None = Field(default=None, ge=0, description="The part left out of training, from 0; none if absent.")
    max_units: int = Field(default=160, ge=8, description="Longest segment, as in the pipeline.")
    learning_rate: float = Field(default=8e-4, gt=0, description="Peak learning rate.")
    warmup_steps: int = Field(default=40, ge=0, description="Steps of linear warm-up to the peak.")
    cooldown: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Final share of the run, over which the learning rate falls linearly to zero.",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay.")
    clip: float = Field(default=1.0, gt=0, description="Gradient norm above which it is clipped.")
    seed: int = Field(default=13, description="Seed of the data order and the initial weights.")

    workers: int = Field(default=1, ge=1, description="Data-parallel worker processes.")
    gpu: bool = Field(default=False, description="Whether each worker has a GPU.")
    precision: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="Precision of weights and products; `auto` takes bfloat16 on a GPU, else what the CPU multiplies "
        "faster. The optimiser always uses float32.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the layers: minutes at the start, then faster, on some CPUs by only a few percent.",
    )

    graphs: bool = Field(
        default=False,
        description="Record steps as CUDA graphs, which small models need to be fast on a GPU (one worker).",
    )

    dev_every: int = Field(default=100, ge=1, description="Steps between losses on the dev splits.")
    dev_batches: int = Field(default=4, ge=1, description="Batches of each dev split used for these losses.")
    measure_every: int = Field(default=0, ge=0, description="Steps between F1 scores on the dev splits; 0: never.")
    patience: int = Field(
        default=0, ge=0, description="Stop after this many scores in a row without a better mean F1; 0: never."
    )
    save_minutes: float = Field(default=5.0, gt=0, description="Minutes between checkpoints.")
    storage: str | None = Field(
        default=None, description="Folder or URI (s3://, gs://) for checkpoints; beside the adapter if absent."
    )
    max_failures: int = Field(default=3, ge=0, description="Worker failures tolerated before the run fails.")

    @field_validator("corpora")
    @classmethod
    def _shares_leave_something(cls, corpora: dict[str, CorpusConfig]) -> dict[str, CorpusConfig]:
        given = [corpus.share for corpus in corpora.values() if corpus.share is not None]
        if len(given) < len(corpora) and sum(given) >= 1:
            raise ValueError(
                "the given shares leave nothing for the other corpora; lower them, or give one to each corpus"
            )
        return corpora

    @field_validator("fold")
    @classmethod
    def _is_one_of_them(cls, fold: int | None, info: ValidationInfo) -> int | None:
        folds = info.data.get("folds", 1)
        if fold is not None and (folds < 2 or fold >= folds):
            raise ValueError("there is no such fold; set folds to two or more, and fold to a number below it")
        return fold

    @classmethod
    def load(cls, file: Path, overrides: Sequence[str] = ()) -> Self:
        """Loads a YAML file, with ``field=value`` overrides.

        Raises :class:`ConfigError` if it is invalid.
        """
        try:
            given = yaml.safe_load(file.read_text(encoding="utf-8"))
        except OSError as error:
            ours = ", ".join(sorted(str(f.stem) for f in CONFIGS.glob("*.yaml")))
            raise ConfigError(
                f"config: {file} cannot be read ({error.strerror}); give a YAML file, or one of {CONFIGS.name}/: {ours}"
            ) from None
        except (yaml.YAMLError, ValueError, RecursionError):  # a date that is none is a ValueError
            raise ConfigError(f"config: {file} is not YAML; see {DEFAULT} for one that is") from None
        if not isinstance(given, dict):
            raise ConfigError(f"config: {file} holds no fields; see {DEFAULT} for one that does")
        for override in overrides:
            name, _, value = override.partition("=")
            try:
                _put(given, name.strip().split("."), yaml.safe_load(value))
            except (yaml.YAMLError, ValueError, RecursionError):
                raise ConfigError("set: the value of an override is not YAML; write it as minutes=30") from None
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise ConfigError(f"config: {file}: {first_problem(error)}; see {DEFAULT} and training/config.py") from None


def _put(given: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        below = given.get(part)
        given[part] = below = dict(below) if isinstance(below, dict) else {}
        given = below
    given[path[-1]] = value


class GeneratorConfig(RunConfig):
    """A generator: the model that copies segments with brackets."""

    tuning: Literal["lora", "full", "qlora"] = Field(
        default="lora",
        description="`full` trains all layers except the embeddings; `qlora` has a 4-bit base and needs CUDA.",
    )
    export_rank: int = Field(
        default=0,
        ge=0,
        description="With `tuning: full`: train linear weights only, and export their difference from the base as an "
        "adapter of this rank; 0: train whole layers, and export the whole model.",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp", description="The whole model in each worker, or sharded over all of them (for large bases)."
    )
    scheme: Literal["labelled", "question"] = Field(
        default="labelled",
        description="`labelled`: one line with labelled brackets for all types; `question`: a question about one "
        "marked span, to be compared with a selector and not served.",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout on the output of each layer.")
    wrong: float = Field(
        default=0.0, ge=0, le=1, description="Share of lines with deliberately wrong brackets (labelled only)."
    )
    replaced: float = Field(
        default=0.0, ge=0, le=1, description="Share of segments in which mentions make way for others of their types."
    )
    judge: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the losses of a head that tells correct mentions from wrong ones by the states around "
        "their brackets, relative to the line's; 0: no head (labelled only). Nothing reads the head yet.",
    )
    contrast: float = Field(default=0.2, ge=0, description="Weight of the contrastive loss within them.")
    size: int = Field(default=256, ge=8, description="Dimensions of the head's embeddings.")
    hidden: int = Field(default=768, ge=8, description="Width of the head's layers.")
    builders: int = Field(default=0, ge=0, description="Extra processes that build batches.")
    measure_texts: int = Field(default=100, ge=1, description="Texts of each dev split used for F1 scores.")

    @model_validator(mode="after")
    def _can_be_recorded(self) -> Self:
        if self.graphs and (self.judge or self.workers > 1 or self.accumulate > 1):
            raise ValueError("graphs: recording steps needs judge 0, workers 1 and accumulate 1; set it to false")
        return self

    @field_validator("export_rank")
    @classmethod
    def _is_of_full_tuning(cls, rank: int, info: ValidationInfo) -> int:
        if rank and info.data.get("tuning", "full") != "full":
            raise ValueError("only `tuning: full` supports it; set tuning to full, or export_rank to 0")
        return rank

    @field_validator("scheme")
    @classmethod
    def _is_measured_as_it_is_served(cls, scheme: str, info: ValidationInfo) -> str:
        if scheme == "question" and info.data.get("measure_every"):
            raise ValueError(f"`{scheme}` has no F1 during training; set measure_every to 0")
        return scheme

    @field_validator("judge")
    @classmethod
    def _has_mentions_to_judge(cls, judge: float, info: ValidationInfo) -> float:
        if judge and info.data.get("scheme") == "question":
            raise ValueError("a question has no line with mentions to tell apart; set it to 0")
        return judge

    @field_validator("parallel")
    @classmethod
    def _can_be_shared_out(cls, parallel: str, info: ValidationInfo) -> str:
        if parallel == "fsdp" and info.data.get("tuning") == "qlora":
            raise ValueError("4-bit weights cannot be sharded; set it to ddp")
        return parallel


class SelectorConfig(RunConfig):
    """A selector: a span encoder that tells correct mentions from wrong ones."""

    graphs: Literal[False] = Field(default=False, description="Its steps are not recorded.")
    init: Path | None = Field(default=None, description="Adapter to start from, of a selector or a generator.")
    learning_rate: float = Field(default=5e-4, gt=0, description="Peak learning rate.")
    candidates: tuple[Path, ...] = Field(
        default=(),
        description="Files from `biobracket candidates`, or folders of them: the generator's mistakes are added to the "
        "sampled negatives.",
    )
    only_candidates: bool = Field(default=False, description="Train only on texts that occur in `candidates`.")
    size: int = Field(default=256, ge=8, description="Dimensions of an embedding.")
    hidden: int = Field(default=768, ge=8, description="Width of the layers between model and embedding.")
    contrast: float = Field(default=0.2, ge=0, description="Weight of the contrastive loss relative to the head's.")
    contrast_temperature: float = Field(default=0.1, gt=0, description="Temperature of the contrastive loss.")
    boundary: int = Field(
        default=4,
        ge=0,
        description="Negatives per mention with one or both ends moved by one to three pieces.",
    )
    inner: int = Field(default=1, ge=0, description="Negatives per mention that lie inside it.")
    wrong_types: int = Field(default=1, ge=0, description="Negatives per mention with its span and a wrong type.")
    elsewhere: int = Field(default=3, ge=0, description="Negatives per segment from anywhere in it.")

    @field_validator("only_candidates")
    @classmethod
    def _has_candidates(cls, only: bool, info: ValidationInfo) -> bool:
        if only and not info.data.get("candidates"):
            raise ValueError("there would be no texts to train on; name candidate files, or set it to false")
        return only
