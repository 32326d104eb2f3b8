"""What an index of exemplars is made of: an exemplar, its vector and the manifest of the folder."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import ExemplarError, first_problem

Kind = Literal["flat", "ivf", "hnsw"]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,128}$")]
TypeKey = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$", description="Entity type key; it names files.")]
Floats = NDArray[np.float32]
Positions = NDArray[np.int64]
Mask = NDArray[np.bool_]

MANIFEST = "manifest.json"
BLOCK = 16384  # vectors per block: 16 MiB at 256 dimensions
REMEDY = "build it again with `biobracket index build`"


class _Frozen(BaseModel):
    # Error messages must not quote inputs: they may be clinical text.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class Exemplar(_Frozen):
    """A labelled mention."""

    # Declared first, so that it comes first on a line and can be read without parsing the line.
    accepted: bool = Field(description="Whether it is a correct mention of the type.")
    id: str = Field(min_length=1, description="Unique in an index, and stable.")
    type: TypeKey
    text: str | None = Field(default=None, description="The mention; null if its source may not be shared.")
    source: str = Field(default="", description="Its origin: the name of a corpus, or `feedback`.")
    reviewer: str | None = Field(default=None, description="Who labelled it.")
    time: float | None = Field(default=None, description="When it was labelled, Unix seconds.")


class TypeCounts(_Frozen):
    """Number of exemplars of one type."""

    count: int = Field(ge=1, description="Number of exemplars.")
    accepted: int = Field(ge=0, description="How many of them are accepted.")


class File(_Frozen):
    """Size and checksum of a file."""

    size: int = Field(ge=0, description="Bytes.")
    sha256: str = Field(description="Hex digest of its content.")


class Manifest(_Frozen):
    """What a folder of exemplars holds."""

    version: Literal[1] = 1
    kind: Kind = Field(description="Kind of the FAISS indexes: exact, inverted lists, or a graph.")
    dim: int = Field(ge=1, description="Dimensions of the vectors.")
    encoder: str = Field(pattern=r"^[0-9a-f]{16}$", description="Revision of the span encoder that made the vectors.")
    flat_below: int = Field(ge=0, description="Types with fewer exemplars are flat, whatever the kind.")
    types: dict[TypeKey, TypeCounts] = Field(default={}, description="By entity type key.")
    files: dict[FileName, File] = Field(default={}, description="Every other file, by name.")

    @property
    def digest(self) -> str:
        """Eight hex digits that change with the exemplars."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]


def checked(vectors: Floats, dim: int, count: int) -> Floats:
    """Vectors in the layout FAISS needs. Raises ExemplarError unless they are (count, dim), finite and of norm 1."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    if vectors.shape != (count, dim):
        raise ExemplarError(f"vectors: shape {vectors.shape}; give ({count}, {dim}), one per exemplar")
    if not np.isfinite(vectors).all():
        raise ExemplarError("vectors: some are not finite; check the encoder's weights")
    norms = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(np.abs(norms - 1) > 1e-3)
    if wrong.size:
        raise ExemplarError(f"vectors: row {wrong[0]} has norm {norms[wrong[0]]:.4g}; divide each by its L2 norm")
    return vectors


def read_manifest(folder: Path, remedy: str) -> Manifest:
    """The manifest of a folder. Raises ExemplarError, which ends with ``remedy``, if there is none to read."""
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise ExemplarError(f"{folder}: no index: {MANIFEST} cannot be read ({error.strerror}); {remedy}") from None
    except ValidationError as error:
        raise ExemplarError(f"{folder / MANIFEST}: {first_problem(error)}; {remedy}") from None
