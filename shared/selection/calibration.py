"""Calibration: from the generator's confidence to a probability, and the threshold of each type.

Platt scaling (Platt 1999) of the log-odds of the confidence, with what else is known of a candidate as further terms:
its margin over the spans it overlaps, and of a selector's the log-odds of the head, the vote of the nearest exemplars
and the gazetteer. There is one set of numbers a type for the spans of the generator's best line and one for those
beyond it, whose confidences mean different things: the first multiplies in the presence of the type, the second are
what the greedy line turned down. ``training.selector.calibration`` fits it on a dev split;
:func:`shared.selection.selector_folder.calibration_file` is where it lies.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.selection.selector_folder import calibration_file, selector_folder
from shared.settings import Settings

# A confidence of 0 or 1 has no logit; this close to either, a generator's numbers say nothing more.
EPSILON = 1e-6


class CalibrationError(ValueError):
    """A calibration file that cannot be used; names the file, the field and the remedy."""


def logit(confidence: float) -> float:
    """Log-odds of a confidence, kept finite at 0 and 1."""
    p = min(1.0 - EPSILON, max(EPSILON, confidence))
    return math.log(p / (1.0 - p))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Judgement(NamedTuple):
    """What is known of a candidate; but for the confidence, 0 where nothing is.

    ``margin``: by how many log-odds the confidence exceeds that of the best other span of the type that it overlaps;
    ``head``: log-odds of the span encoder's head; ``vote``: of the nearest exemplars, from -1, all of them rejected, to
    1, all accepted; ``words``: log-odds by the gazetteer.
    """

    confidence: float
    greedy: bool
    margin: float = 0.0
    head: float = 0.0
    vote: float = 0.0
    words: float = 0.0

    @property
    def terms(self) -> tuple[float, ...]:
        """What the factors of a :class:`Scaling` are applied to, in their order."""
        return (logit(self.confidence), self.margin, self.head, self.vote, self.words)


class Scaling(_Frozen):
    """The log-odds that a candidate is right: the sum of what is known of it, each by its factor, and a shift.

    They fall with none of it.
    """

    slope: float = Field(default=1.0, ge=0.0, description="Factor on the log-odds of the confidence.")
    margin: float = Field(default=0.0, ge=0.0, description="Factor on its margin.")
    head: float = Field(default=0.0, ge=0.0, description="Factor on the log-odds of the span encoder's head.")
    vote: float = Field(default=0.0, ge=0.0, description="Factor on the vote of the nearest exemplars.")
    words: float = Field(default=0.0, ge=0.0, description="Factor on the log-odds by the gazetteer.")
    intercept: float = Field(default=0.0, description="Shift of the log-odds.")

    @property
    def factors(self) -> tuple[float, ...]:
        """Of :attr:`Judgement.terms`, in their order."""
        return (self.slope, self.margin, self.head, self.vote, self.words)

    def probability(self, known: Judgement) -> float:
        """The calibrated probability, in 0..1."""
        x = sum(factor * term for factor, term in zip(self.factors, known.terms, strict=True)) + self.intercept
        return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


# A span that the greedy line turned down is wrong more often than its confidence says: unfitted, it needs 0.88 to pass
# a threshold of a half.
_BEYOND = Scaling(intercept=-2.0)


class TypeCalibration(_Frozen):
    """How one type is decided."""

    greedy: Scaling = Field(default=Scaling(), description="For the spans of the generator's best line.")
    beyond: Scaling = Field(default=_BEYOND, description="For the spans beyond it.")
    threshold: float = Field(default=0.5, ge=0.0, le=1.0, description="Least probability of a span that is kept.")
    fitted_on: int = Field(default=0, ge=0, description="Candidates of the type that it was fitted on.")


class Calibration(_Frozen):
    """All types. A type that is not listed, hence was never fitted, is decided by ``unfitted``."""

    version: Literal[1] = 1
    types: dict[str, TypeCalibration] = Field(default_factory=dict)
    unfitted: TypeCalibration = Field(
        default=TypeCalibration(),
        description="For types never fitted: the confidence as it is, threshold 0.5.",
    )

    @classmethod
    def default(cls) -> Calibration:
        """The calibration of a generator that none was fitted for."""
        return cls()

    @classmethod
    def for_settings(cls, settings: Settings) -> Calibration:
        """That of generator and selector; the default one where there is no selector, and no file beside the adapter.

        CalibrationError where a selector was never fitted to the generator: what it says then means nothing.
        """
        file = calibration_file(settings)
        if file is None or not file.exists():
            if selector_folder(settings) is not None:
                raise CalibrationError(
                    f"selector: {file} does not exist: the selector was not fitted to this base and adapter; run "
                    "`biobracket train calibration`, or set BIOBRACKET_SELECTOR to nothing"
                )
            return cls.default()
        return cls.load(file)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Reads a file that :meth:`save` wrote. CalibrationError where it is missing or not one."""
        remedy = "fit it again or delete the file to use the default calibration"
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise CalibrationError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "file"
            raise CalibrationError(f"{path}: {field}: {first['msg']}; {remedy}") from None

    def save(self, path: Path) -> None:
        """Writes the calibration as JSON, keys in order. The folder must exist; OSError where it cannot be written."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")

    def of(self, type_: str) -> TypeCalibration:
        """How a type is decided."""
        return self.types.get(type_, self.unfitted)

    def probability(self, type_: str, known: Judgement) -> float:
        """The probability that a candidate of a type is right, in 0..1."""
        fitted = self.of(type_)
        return (fitted.greedy if known.greedy else fitted.beyond).probability(known)

    def threshold(self, type_: str) -> float:
        """The least probability of a candidate that is kept."""
        return self.of(type_).threshold
