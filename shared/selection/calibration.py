"""Calibration: turns the generator's confidence into a probability, and holds the threshold of each type.

Platt scaling (Platt 1999) of the log-odds of the confidence, with further evidence as extra terms: the candidate's
margin over the spans it overlaps and, with a selector, the log-odds of its head, the vote of the nearest exemplars and
the gazetteer. Each type has one set of parameters for the spans of the generator's best line and one for those beyond
it, since their confidences mean different things: the first include the probability that the type is present, the
second belong to spans the greedy line rejected. ``training.selector.calibration`` fits it on a dev split;
:func:`shared.selection.selector_folder.calibration_file` says where it is stored.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import first_problem
from shared.selection.selector_folder import calibration_file, selector_folder
from shared.settings import Settings

# A confidence of 0 or 1 has no logit; this close to either, differences mean nothing.
EPSILON = 1e-6


class CalibrationError(ValueError):
    """A calibration file is unusable; the message names the file, the field and the remedy."""


def logit(confidence: float) -> float:
    """Log-odds of a confidence, kept finite at 0 and 1."""
    p = min(1.0 - EPSILON, max(EPSILON, confidence))
    return math.log(p / (1.0 - p))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Judgement(NamedTuple):
    """The evidence on a candidate; all but the confidence is 0 where there is none.

    ``margin``: difference in log-odds to the best overlapping span of the same type; ``head``: log-odds from the span
    encoder's head; ``vote``: of the nearest exemplars, from -1 (all rejected) to 1 (all accepted); ``words``: log-odds
    from the gazetteer.
    """

    confidence: float
    greedy: bool
    margin: float = 0.0
    head: float = 0.0
    vote: float = 0.0
    words: float = 0.0

    @property
    def terms(self) -> tuple[float, ...]:
        """The terms that the factors of a :class:`Scaling` apply to, in the same order."""
        return (logit(self.confidence), self.margin, self.head, self.vote, self.words)


class Scaling(_Frozen):
    """A logistic regression: the log-odds that a candidate is right, a weighted sum of its evidence plus an intercept.

    No weight is negative, so more evidence never lowers the probability.
    """

    slope: float = Field(default=1.0, ge=0.0, description="Factor on the log-odds of the confidence.")
    margin: float = Field(default=0.0, ge=0.0, description="Factor on the margin.")
    head: float = Field(default=0.0, ge=0.0, description="Factor on the log-odds of the span encoder's head.")
    vote: float = Field(default=0.0, ge=0.0, description="Factor on the vote of the nearest exemplars.")
    words: float = Field(default=0.0, ge=0.0, description="Factor on the log-odds from the gazetteer.")
    intercept: float = Field(default=0.0, description="Shift of the log-odds.")

    @property
    def factors(self) -> tuple[float, ...]:
        """The weights of :attr:`Judgement.terms`, in the same order."""
        return (self.slope, self.margin, self.head, self.vote, self.words)

    def probability(self, known: Judgement) -> float:
        """The calibrated probability, in 0..1."""
        x = sum(factor * term for factor, term in zip(self.factors, known.terms, strict=True)) + self.intercept
        return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


# A span the greedy line rejected is wrong more often than its confidence says: unfitted, it needs a confidence of 0.88
# to pass a threshold of one half.
_BEYOND = Scaling(intercept=-2.0)


class TypeCalibration(_Frozen):
    """Parameters and threshold of one type."""

    greedy: Scaling = Field(default=Scaling(), description="For the spans of the generator's best line.")
    beyond: Scaling = Field(default=_BEYOND, description="For the spans beyond it.")
    threshold: float = Field(default=0.5, ge=0.0, le=1.0, description="Lowest probability at which a span is kept.")
    fitted_on: int = Field(default=0, ge=0, description="Number of candidates of the type it was fitted on.")


class Calibration(_Frozen):
    """The calibration of all types. Types not listed were never fitted and use ``unfitted``."""

    version: Literal[1] = 1
    types: dict[str, TypeCalibration] = Field(default_factory=dict)
    unfitted: TypeCalibration = Field(
        default=TypeCalibration(),
        description="For types never fitted: the confidence unchanged, threshold 0.5.",
    )

    @classmethod
    def default(cls) -> Calibration:
        """The calibration of a generator for which none was fitted."""
        return cls()

    @classmethod
    def for_settings(cls, settings: Settings) -> Calibration:
        """The calibration of the generator and selector in the settings.

        The default without a selector and without a file beside the adapter. Raises CalibrationError if there is a
        selector that was never fitted to this generator: its scores would mean nothing.
        """
        file = calibration_file(settings)
        if file is None or not file.exists():
            if selector_folder(settings) is not None:
                raise CalibrationError(
                    f"selector: {file} does not exist: the selector was not fitted to this base and adapter; run "
                    "`biobracket train calibration`, or set BIOBRACKET_SELECTOR to an empty string"
                )
            return cls.default()
        return cls.load(file)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Reads a file that :meth:`save` wrote. Raises CalibrationError if it is missing or invalid."""
        remedy = "fit it again or delete the file to use the default calibration"
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise CalibrationError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
        except ValidationError as error:
            raise CalibrationError(f"{path}: {first_problem(error)}; {remedy}") from None

    def save(self, path: Path) -> None:
        """Writes the calibration as JSON with sorted keys into an existing folder. Raises OSError if it cannot."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True)
        path.write_text(text + "\n", encoding="utf-8")

    def of(self, type_: str) -> TypeCalibration:
        """Parameters and threshold of a type."""
        return self.types.get(type_, self.unfitted)

    def probability(self, type_: str, known: Judgement) -> float:
        """The probability that a candidate of a type is right, in 0..1."""
        fitted = self.of(type_)
        return (fitted.greedy if known.greedy else fitted.beyond).probability(known)

    def threshold(self, type_: str) -> float:
        """The lowest probability at which a candidate is kept."""
        return self.of(type_).threshold
