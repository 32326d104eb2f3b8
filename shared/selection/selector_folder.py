"""The folder of a selector: where it is, what it holds, and the revision of a generator with a selector."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import SelectorError, first_problem
from shared.model.folders import PROJECT, adapter_folder, find_folder
from shared.model.revision import digest, generator_revision, weights
from shared.settings import Settings

CALIBRATION_FILE = "calibration.json"
SELECTOR_FILE = "selector.json"
AUTO = "auto"
_OURS = PROJECT / "models" / "gemma-3-270m-biobracket-selector"


class SelectorFile(BaseModel):
    """``selector.json``: what a span encoder needs besides its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=1, ge=1, le=1)
    types: tuple[str, ...] = Field(min_length=1, description="Entity type keys, in the order of the head's table.")
    size: int = Field(ge=1, description="Length of an embedding.")
    hidden: int = Field(ge=1, description="Width of the hidden layers before it.")
    reading: Literal["both-ways", "line"] = Field(
        default="both-ways",
        description="`both-ways`: once, bidirectionally; `line`: by the states of the generator's line.",
    )

    @classmethod
    def load(cls, folder: Path) -> SelectorFile:
        """Reads it from a selector's folder. Raises :class:`SelectorError` if there is none."""
        file = folder / SELECTOR_FILE
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise SelectorError(
                f"selector: {file} cannot be read ({error.strerror}); set BIOBRACKET_SELECTOR to a folder made by "
                "`biobracket train selector`, or to an empty string to select by the generator's confidence alone"
            ) from None
        except ValidationError as error:
            raise SelectorError(f"selector: {file}: {first_problem(error)}; train the selector again") from None


def selector_folder(settings: Settings) -> Path | None:
    """The folder that ``settings.selector`` names, found as :func:`adapter_folder` does; None if there is none."""
    if settings.selector == AUTO:
        return _OURS if (_OURS / _calibration_name(settings)).is_file() else None
    return find_folder("selector", settings.selector, "selector", "select by the generator's confidence alone")


def index_folder(selector: Path) -> Path:
    """Where a selector's folder keeps its exemplars, if it has any."""
    return selector / "index"


def calibration_file(settings: Settings) -> Path | None:
    """Where the calibration for these settings is, or would be.

    In the selector's folder, one for each generator it was fitted to; without a selector, in the adapter's folder; None
    without either.
    """
    selector, adapter = selector_folder(settings), adapter_folder(settings)
    if selector is not None:
        return selector / _calibration_name(settings)
    return adapter / CALIBRATION_FILE if adapter is not None else None


def _calibration_name(settings: Settings) -> str:
    return f"calibration-{generator_revision(settings)}.json"


def model_revision(settings: Settings) -> str:
    """Sixteen hex digits that change with the base, adapter, selector, calibration or tagging scheme."""
    folders = [folder for folder in (adapter_folder(settings), selector_folder(settings)) if folder is not None]
    calibration = calibration_file(settings)
    files = [file for folder in folders for file in weights(folder, SELECTOR_FILE)]
    return digest(settings.base_model, *files, *([calibration] if calibration and calibration.is_file() else []))
