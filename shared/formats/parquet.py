"""Parquet: a row a document, its entities a list of structs. Offsets count the unit asked for, which the schema names.

The text is a column of its own, null where it is not known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any, BinaryIO

from shared.formats.common import Annotated, Writing, library
from shared.formats.json_lines import in_unit

_ROWS = 1000  # of a row group, which is held in memory


def write(documents: Iterable[Annotated], out: BinaryIO, writing: Writing) -> None:
    """All documents in one file."""
    pyarrow = library("pyarrow", "pyarrow", "parquet")
    parquet = library("pyarrow.parquet", "pyarrow", "parquet")
    schema = _schema(pyarrow, writing)
    rows = (_row(document, writing) for document in documents)
    with parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        while batch := list(islice(rows, _ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))


def _schema(pyarrow: Any, writing: Writing) -> Any:
    text, number, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    entity = pyarrow.struct(
        [
            ("id", text),
            ("start", number),
            ("end", number),
            ("text", text),
            ("type", text),
            ("confidence", real),
            ("generator_confidence", real),
            ("parent_id", text),
        ]
    )
    columns = [
        ("document_id", text),
        ("text", text),
        ("text_sha256", text),
        ("lang", text),
        ("types", pyarrow.list_(text)),
        ("entities", pyarrow.list_(entity)),
        ("metadata", text),  # as JSON
        ("model_revision", text),
    ]
    return pyarrow.schema(columns, metadata={"biobracket.offset_unit": writing.unit})


def _row(document: Annotated, writing: Writing) -> dict[str, Any]:
    row = in_unit(document, writing.unit)
    writing.lost["evidence, which the Parquet schema has no column for"] += sum(
        bool(entity.evidence) for entity in document.entities
    )
    return {**row, "text": document.text, "metadata": json.dumps(row["metadata"], ensure_ascii=False)}
