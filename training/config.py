"""What a training run is made of: the fields of the files in ``training/configs``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from shared.selection.selector_folder import Way

CONFIGS = Path(__file__).resolve().parent / "configs"
DEFAULT = CONFIGS / "gemma-3-270m.yaml"


class ConfigError(ValueError):
    """A configuration that cannot be used; names the field and the remedy."""


class TrainingError(RuntimeError):
    """A run cannot go on; the message names the field and the remedy."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CorpusConfig(_Frozen):
    """A corpus in the mix."""

    share: float | None = Field(
        default=None, gt=0, description="Share of the tokens, relative to the others'; by its size where absent."
    )
    types: dict[str, str] | None = Field(
        default=None, description="Its labels and their keys of the inventory; those known for its name where absent."
    )


class RunConfig(_Frozen):
    """Of any run. ``minutes`` or ``max_tokens`` ends it, whichever comes first; by then the learning rate is nothing.

    Equal configurations, corpora and numbers of workers give equal runs where ``max_tokens`` ends them.
    """

    corpora: dict[str, CorpusConfig] = Field(min_length=1, description="Corpora by name or folder.")
    temperature: float = Field(
        default=2.0,
        ge=1,
        description="A corpus without a share has tokens ** (1 / temperature): 1 is by size, more is more even.",
    )

    rank: int = Field(default=32, ge=1, description="Rank of a new adapter; with `init` that one's own holds.")
    alpha: int = Field(default=64, ge=1, description="Scale of a new adapter: alpha / rank; with `init` its own holds.")
    init: Path | None = Field(
        default=None,
        description="Adapter to go on from; with `tuning: full` it is merged into the base before that is trained.",
    )

    minutes: float = Field(default=60.0, gt=0, description="Minutes to train.")
    max_tokens: int = Field(default=10**12, ge=1, description="Tokens to train on, of all workers.")
    batch_tokens: int = Field(default=2048, ge=64, description="Tokens of a batch; every batch has this shape.")
    accumulate: int = Field(default=1, ge=1, description="Batches of each worker to a step.")
    folds: int = Field(default=1, ge=1, description="Parts of each train split, for cross-fitting.")
    fold: int | None = Field(
        default=None, ge=0, description="The part that is not trained on, from 0; all are where absent."
    )
    max_units: int = Field(default=160, ge=8, description="Longest segment, as the pipeline cuts them.")
    learning_rate: float = Field(default=8e-4, gt=0, description="Highest learning rate.")
    warmup_steps: int = Field(default=40, ge=0, description="Steps in which it is reached.")
    cooldown: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Last part of the run, in which the learning rate falls to nothing; before it, it is constant.",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay.")
    clip: float = Field(default=1.0, gt=0, description="Largest norm of a step's gradient.")
    seed: int = Field(default=13, description="Seed of order and initial weights.")

    workers: int = Field(default=1, ge=1, description="Processes that train side by side.")
    gpu: bool = Field(default=False, description="Whether each worker has a GPU.")
    precision: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="Of weights and products; the optimiser always works in float32."
    )
    compile: bool = Field(
        default=False,
        description="Compile the layers: minutes to begin, then faster, on some CPUs by a few percent only.",
    )

    dev_every: int = Field(default=100, ge=1, description="Steps between losses on the dev splits.")
    dev_batches: int = Field(default=4, ge=1, description="Batches of each dev split that they are taken from.")
    measure_every: int = Field(default=0, ge=0, description="Steps between F1 scores on the dev splits; 0: none.")
    patience: int = Field(
        default=0, ge=0, description="Scores in a row without a better mean F1 that end the run; 0: none do."
    )
    save_minutes: float = Field(default=5.0, gt=0, description="Minutes between checkpoints.")
    storage: str | None = Field(
        default=None, description="Folder or URI (s3://, gs://) of the checkpoints; beside the adapter where absent."
    )
    max_failures: int = Field(default=3, ge=0, description="Workers that may be lost before the run fails.")

    @field_validator("corpora")
    @classmethod
    def _shares_leave_something(cls, corpora: dict[str, CorpusConfig]) -> dict[str, CorpusConfig]:
        given = [corpus.share for corpus in corpora.values() if corpus.share is not None]
        if len(given) < len(corpora) and sum(given) >= 1:
            raise ValueError("the given shares leave nothing for the others; lower them, or give every one")
        return corpora

    @field_validator("fold")
    @classmethod
    def _is_one_of_them(cls, fold: int | None, info: ValidationInfo) -> int | None:
        folds = info.data.get("folds", 1)
        if fold is not None and (folds < 2 or fold >= folds):
            raise ValueError("there is no such part; set folds to two or more, and fold to a number below it")
        return fold

    @classmethod
    def load(cls, file: Path, overrides: Sequence[str] = ()) -> Self:
        """The configuration of a YAML file, with ``field=value`` overrides.

        :class:`ConfigError` where it is not one.
        """
        try:
            given = yaml.safe_load(file.read_text(encoding="utf-8"))
        except OSError as error:
            ours = ", ".join(sorted(str(f.stem) for f in CONFIGS.glob("*.yaml")))
            raise ConfigError(
                f"config: {file} cannot be read ({error.strerror}); give a YAML file, or one of {CONFIGS.name}/: {ours}"
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError):
            raise ConfigError(f"config: {file} is not YAML; see {DEFAULT} for one that is") from None
        if not isinstance(given, dict):
            raise ConfigError(f"config: {file} holds no fields; see {DEFAULT} for one that does")
        for override in overrides:
            name, _, value = override.partition("=")
            _put(given, name.strip().split("."), yaml.safe_load(value))
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "file"
            message = first["msg"].removeprefix("Value error, ")  # pydantic's, before what a validator says
            raise ConfigError(f"config: {file}: {field}: {message}; see {DEFAULT} and training/config.py") from None


def _put(given: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        below = given.get(part)
        given[part] = below = dict(below) if isinstance(below, dict) else {}
        given = below
    given[path[-1]] = value


class GeneratorConfig(RunConfig):
    """What makes a generator."""

    tuning: Literal["lora", "full", "qlora"] = Field(
        default="lora",
        description="`full` trains every layer and leaves the embeddings; `qlora` has a 4-bit base and needs CUDA.",
    )
    export_rank: int = Field(
        default=0,
        ge=0,
        description="With `tuning: full`: train linear weights only, and leave their difference to the base as an "
        "adapter of this rank; 0: train all of the layers, and leave the whole model.",
    )
    parallel: Literal["ddp", "fsdp"] = Field(
        default="ddp", description="A whole model in each worker, or one shared out over all (for large bases)."
    )
    scheme: Literal["per-type", "labelled", "question"] = Field(
        default="per-type",
        description="A line for each type; or to be compared with it, and not served: all types in one line of "
        "labelled brackets, or a question about one marked span.",
    )
    negatives: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Share of the lines of absent types that are trained on, drawn anew each time.",
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Share of what a layer adds that is dropped (labelled)."
    )
    wrong: float = Field(
        default=0.5, ge=0, le=1, description="Share of the lines with mentions marked wrongly on purpose (labelled)."
    )
    judge: float = Field(
        default=0.3, ge=0, description="Weight of the head's losses beside the line's, 0 for no head (labelled)."
    )
    contrast: float = Field(default=0.2, ge=0, description="Weight of the contrastive loss within them.")
    size: int = Field(default=256, ge=8, description="Length of an embedding of the head.")
    hidden: int = Field(default=768, ge=8, description="Width of the head's layers.")
    builders: int = Field(default=0, ge=0, description="Processes that make batches (labelled); 0: none beside this.")
    measure_texts: int = Field(default=100, ge=1, description="Texts of each dev split that they are taken from.")

    @field_validator("export_rank")
    @classmethod
    def _is_of_full_tuning(cls, rank: int, info: ValidationInfo) -> int:
        if rank and info.data.get("tuning", "full") != "full":
            raise ValueError("only `tuning: full` has it; set tuning to full, or export_rank to 0")
        return rank

    @field_validator("scheme")
    @classmethod
    def _is_measured_as_it_is_served(cls, scheme: str, info: ValidationInfo) -> str:
        if scheme == "question" and info.data.get("measure_every"):
            raise ValueError(f"`{scheme}` has no F1 while training; set measure_every to 0")
        return scheme

    @field_validator("parallel")
    @classmethod
    def _can_be_shared_out(cls, parallel: str, info: ValidationInfo) -> str:
        if parallel == "fsdp" and info.data.get("tuning") == "qlora":
            raise ValueError("4-bit weights cannot be shared out; set it to ddp")
        return parallel


class SelectorConfig(RunConfig):
    """What makes a selector: a span encoder that tells right mentions from wrong ones."""

    init: Path | None = Field(
        default=None, description="Adapter to go on from, of a selector or of a generator, which knows mentions too."
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="Highest learning rate.")
    reading: Way = Field(
        default="both-ways",
        description="How a segment is read: once, both ways, with the adapter trained; or by the states of the "
        "generator in `init`, which stays as it is, over a copy for each type.",
    )
    candidates: tuple[Path, ...] = Field(
        default=(),
        description="Files of `biobracket candidates`, or folders of them: a generator's wrong ones are learnt from "
        "beside what is drawn.",
    )
    only_candidates: bool = Field(
        default=False, description="Whether only those texts are trained on that `candidates` has any of."
    )
    size: int = Field(default=256, ge=8, description="Length of an embedding.")
    hidden: int = Field(default=768, ge=8, description="Width of the layers between the model and the embedding.")
    contrast: float = Field(default=0.2, ge=0, description="Weight of the contrastive loss beside the head's.")
    contrast_temperature: float = Field(default=0.1, gt=0, description="Its temperature.")
    boundary: int = Field(
        default=4,
        ge=0,
        description="Wrong spans drawn for each mention with one or both ends moved by one to three pieces.",
    )
    inner: int = Field(default=1, ge=0, description="Wrong spans drawn inside each mention.")
    wrong_types: int = Field(default=1, ge=0, description="Wrong types drawn for the span of each mention.")
    elsewhere: int = Field(default=3, ge=0, description="Wrong spans drawn anywhere in each segment.")

    @field_validator("only_candidates")
    @classmethod
    def _has_candidates(cls, only: bool, info: ValidationInfo) -> bool:
        if only and not info.data.get("candidates"):
            raise ValueError("there are no texts to train on; name files of candidates, or set it to false")
        return only

    @field_validator("reading")
    @classmethod
    def _has_a_generator(cls, reading: Way, info: ValidationInfo) -> Way:
        if reading == "copy" and info.data.get("init") is None:
            raise ValueError("`copy` reads with a generator's adapter; name its folder in init")
        return reading
