"""Every parser of bytes from outside, with the errors that it documents and right inputs to start from."""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from kafka import TopicPartition
from kafka.record import MemoryRecords, MemoryRecordsBuilder
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings, SettingsError
from rich.progress import Progress

from services import audit_trail
from services.audit import _result as place_of_entities
from services.cli.console import classes
from services.cli.document_files import read_text, records
from services.erasure import Choice
from services.ingest.admission import admit, admit_erasure, admit_feedback
from services.line_file import LineFile, LineFileError
from services.parsing.brackets import parse
from services.pipeline.decisions import SegmentDecision
from services.query.auth import key_file
from services.query.auth.callers import AuthenticationError, Rejected
from services.query.auth.jwks import FileKeys, public_keys
from services.query.auth.key_file import KeyRing
from services.query.auth.tokens import TokenVerifier
from shared.backends.records import Record, dead_letter_headers, erasure_of, milliseconds, origin, position_of, replayed
from shared.backends.streams.batches import Places, UnreadableBatch, _PartitionRecords
from shared.errors import AdapterError, DigestError, DocumentError, ExemplarError, SelectorError
from shared.messages import Document, Extraction, Segment, TaggedLine
from shared.model.digests import SUMS, check_sums, sha256, write_sums
from shared.model.scheme import SCHEME_FILE, Guideline, guidelines_of, write_scheme
from shared.selection.calibration import Calibration, CalibrationError
from shared.selection.exemplars.format import MANIFEST, Exemplar
from shared.selection.exemplars.index import ExemplarIndex
from shared.selection.gazetteer import GAZETTEER_FILE, Gazetteer, WordCounts
from shared.selection.selector_folder import SELECTOR_FILE, SelectorFile
from shared.selection.span_encoder import HEAD_FILE, SpanHead, write_head
from shared.settings import problem
from shared.text.tagging import decode
from tests.inputs.generation import MARK
from tests.support.certificates import Issuer
from tests.support.http import extraction_of
from training.config import ConfigError, GeneratorConfig, SelectorConfig
from training.data import candidates, corpora
from training.data.corpora import CorpusError
from training.data.formats import Format
from training.data.formats.common import Reading
from training.data.formats.conversion import convert
from training.evaluation import predictions

TEXT = f"{MARK} 因右肺腺癌入院, CD28 [x] surface receptor."


@dataclass(frozen=True)
class Parser:
    """``run`` takes bytes and an empty folder; it raises one of ``refusals``, or returns False, for what is refused."""

    name: str
    run: Callable[[bytes, Path], Any]
    refusals: tuple[type[Exception], ...]
    seeds: Sequence[bytes]
    fields: Sequence[str] = ()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _record(key: bytes | None, value: bytes | None, headers: Any = (), timestamp: int = 0) -> Record:
    return Record("documents", 0, 7, key, value, timestamp, tuple(headers))


# -- streams -----------------------------------------------------------------------------------------------------------

_DOCUMENT = {
    "id": f"note {MARK}",
    "text": TEXT,
    "lang": "zh",
    "types": ["disease", "body"],
    "metadata": {"ward": MARK, "n": [1, {"x": None}]},
}
_FEEDBACK = {"text": TEXT, "start": 9, "end": 13, "type": "disease", "accepted": False, "reviewer": MARK, "time": 1.0}
_EXTRACTION = extraction_of(Document(id=MARK, text=TEXT)).model_dump(mode="json")


def _entities(content: bytes, folder: Path) -> bool:
    record = _record(b"k", content)
    place_of_entities(record)
    try:
        Extraction.model_validate_json(content)
    except ValidationError:  # as `rebuild` and the audit take it; they tell nothing of it
        return False
    return True


def _header(content: bytes, folder: Path) -> bool:
    """Headers, one on each line, of a record that has a key, too."""
    parts = [line.partition(b"=") for line in content.split(b"\n")]
    headers = [(name.decode(errors="replace"), value) for name, _, value in parts]
    record = _record(content[:40], None, headers)
    position_of(record), replayed(record), erasure_of(record)
    dead_letter_headers(record, "invalid", content[:20].decode(errors="replace"))
    milliseconds(int.from_bytes(content[:8], "big", signed=True))
    return origin(record) is not None


def _batch() -> bytes:
    built = MemoryRecordsBuilder(2, 0, 10_000)
    for i in range(3):
        built.append(1_000 + i, b"k", _json(_DOCUMENT), headers=[("h", b"v")])
    built.close()
    return bytes(built.buffer())


class _Drained:
    def record(self, *_: Any) -> None:
        """Kafka's metrics."""


def _batches(content: bytes, folder: Path) -> bool:
    """What the broker sends of a partition, read until nothing is left."""
    partition, places = TopicPartition("t", 0), Places(1, 1 << 20, lambda _: 0)
    places.ends[partition] = 1 << 40
    reader = _PartitionRecords(places, 0, partition, MemoryRecords(content))
    found: list[Any] = []
    while reader and (some := reader.take(100)):
        found += some
    return bool(found) and not any(isinstance(one, UnreadableBatch) for one in found)


# -- the model's lines -------------------------------------------------------------------------------------------------


def _line(content: bytes, folder: Path) -> bool:
    said = content.decode(errors="surrogateescape")
    segment = Segment(document_id="d", index=0, start=3, end=3 + len(TEXT), text=TEXT, lang="zh")
    for types in (("disease",), ("protein", "dna", "disease")):
        line = TaggedLine(segment=segment, types=types, tagged=said, presence=0.9)
        parsed = parse(line)
        for c in parsed.candidates:
            assert c.type in types
            assert 3 <= c.start < c.end <= segment.end
            assert TEXT[c.start - 3 : c.end - 3] == c.text
    return not parsed.repairs


_LINES = [
    "",
    "患者 zq17 因[右[肺 | body]腺癌 | disease]入院, [[CD28 | protein] \\[x\\] surface receptor | dna].",
    "disease: 患者 zq17 因[右肺腺癌]入院, CD28 [x] surface receptor.\n患者 zq17 因右[肺腺癌 | 疾病]入院",
]


def _decision(content: bytes, folder: Path) -> Any:
    return SegmentDecision.read(content, TEXT)


# -- corpora -----------------------------------------------------------------------------------------------------------


def _converted(content: bytes, folder: Path, *, format: Format, name: str) -> bool:
    """As it is, and with bad items left out; what is accepted has the offsets of its mentions."""
    source = folder / name
    if format == "brat":
        source = folder / "brat"
        source.mkdir(exist_ok=True)
        text, _, annotations = content.partition(b"\x1e")
        (source / "a.txt").write_bytes(text)
        (source / "a.ann").write_bytes(annotations)
    else:
        source.write_bytes(content)
    out = folder / "out.jsonl"
    for skip_bad in (True, False):
        reading = Reading(skip_bad=skip_bad, discontinuous="cover", documents="docstart" if skip_bad else "sentence")
        try:
            convert(source, format, out, reading)
        except CorpusError:
            if skip_bad:
                continue
            raise
        for line in out.read_bytes().splitlines():
            row = json.loads(line)
            assert all(row["text"][e["start"] : e["end"]] == e["text"] for e in row["entities"])
    return True


_ENTITY = {"start": 9, "end": 13, "type": "disease", "text": TEXT[9:13]}
_BIOC = {
    "documents": [
        {
            "id": MARK,
            "passages": [
                {
                    "offset": 0,
                    "text": TEXT,
                    "infons": {"k": MARK},
                    "annotations": [
                        {
                            "text": TEXT[9:13],
                            "locations": [{"offset": 9, "length": 4}],
                            "infons": {"type": "disease", MARK: MARK},
                        }
                    ],
                },
                {"offset": 60, "sentences": [{"offset": 60, "text": "CD28", "annotations": []}]},
            ],
        }
    ]
}
_BIOC_XML = f"""<?xml version="1.0" encoding="UTF-8"?><collection><document><id>{MARK}</id><passage><offset>0</offset>
<text>{TEXT}</text><annotation id="1"><infon key="type">disease</infon><location offset="9" length="4"/>
<text>{TEXT[9:13]}</text></annotation><sentence><offset>50</offset></sentence></passage></document></collection>"""
_BRAT = (
    f"{TEXT}\r\nCD28\x1eT1\tdisease 9 13\t{TEXT[9:13]}\nT2\tdrug 9 11;12 13\tx\nR1\tArg1:T1\nT3\tdna 0 2\t{MARK[:2]}\n"
)
_PUBTATOR = f"17|t|{TEXT}\n17|a|CD28\n17\t9\t13\t{TEXT[9:13]}\tdisease\tD1\n17\tCID\ta\tb\n\n{MARK}|t|x\n"
_CONLL = f"-DOCSTART- O\n\n# text = x\n{MARK[:2]}\tO\nCD28\tB-dna\nzq17\tI-dna\n\n肺\tS-body\n癌\tE-{MARK[-4:]}\n"
_CBLUE = [{"text": TEXT, "entities": [{"start_idx": 9, "end_idx": 12, "type": "disease", "entity": TEXT[9:13]}]}]
_ROW = {"id": MARK, "text": TEXT, "lang": "zh", "entities": [_ENTITY]}


def _corpus(content: bytes, folder: Path) -> Any:
    (folder / "train.jsonl").write_bytes(content)
    try:
        return corpora.read(folder, "train")
    except CorpusError as error:
        if str(error).startswith("types: "):
            return False  # it names labels, which are the corpus's scheme and no text, since they have to be mapped
        raise


def _candidates(content: bytes, folder: Path) -> Any:
    (folder / "candidates.jsonl").write_bytes(content)
    return candidates.wrong([folder])


def _predictions(content: bytes, folder: Path) -> Any:
    (folder / "predictions.jsonl").write_bytes(content)
    return predictions.read(folder / "predictions.jsonl", [Document(id=MARK, text=TEXT)])


def _training(content: bytes, folder: Path) -> None:
    file = folder / "config.yaml"
    file.write_bytes(content)
    for kind in (GeneratorConfig, SelectorConfig):
        kind.load(file, [content[:30].decode(errors="replace")] if content[:1] in b"ms" else [])


# -- files of the command line -----------------------------------------------------------------------------------------


def _document_file(content: bytes, folder: Path, *, name: str) -> bool:
    file = folder / name
    file.write_bytes(content)
    found = list(records([str(file)], Progress(disable=True)))
    for one in found:
        assert one.value is not None or one.problem is not None
        if one.problem is not None and leaks(one.problem):
            raise AssertionError("quotes the input")
        if one.problem is None:
            admit(one.value)
    return all(one.problem is None for one in found)


def _text_file(content: bytes, folder: Path) -> str:
    (folder / "a.txt.gz").write_bytes(content)
    return read_text(str(folder / "a.txt.gz"))


def _chosen(content: bytes, folder: Path) -> None:
    """Metadata that `forget` looks for, and a letter that it looks at."""
    name, _, value = content.decode(errors="replace").partition("=")
    Choice(metadata={name: value}).takes(0, {name: value, "ward": json.loads(b"1"), "n": [1, MARK]})


def _trail(content: bytes, folder: Path) -> bool:
    flaws = list(audit_trail.verify(content.splitlines(keepends=True), audit_trail.Verified()))
    assert not any(leaks(flaw.problem) for flaw in flaws)
    return not flaws


def _trail_seed() -> bytes:
    written: list[bytes] = []
    trail = audit_trail.AuditTrail(written.append)
    for n in range(3):
        trail.add(f"ward-{n}", "read", MARK, "ok")
    trail.close()
    return b"".join(written)


def _line_file(content: bytes, folder: Path) -> None:
    (folder / "lines.sqlite").write_bytes(content)
    lines = LineFile(folder / "lines.sqlite")
    lines._database.close()


# -- credentials -------------------------------------------------------------------------------------------------------

_ISSUER = Issuer()


class _Held:
    async def find(self, kid: str) -> Any:
        return public_keys({"keys": [_ISSUER.jwk()]}).get(kid)


def _token(content: bytes, folder: Path) -> Any:
    verifier = TokenVerifier(
        _Held(), issuer=Issuer.name, audience=Issuer.audience, algorithms=("ES256", "RS256"), leeway_s=5
    )
    return asyncio.run(verifier.check(content.decode("latin-1")))


def _jwks(content: bytes, folder: Path) -> Any:
    (folder / "jwks.json").write_bytes(content)
    return asyncio.run(FileKeys(folder / "jwks.json").find("k1"))


@functools.cache
def _keys_seed() -> tuple[bytes, str]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.json"
        key, _ = key_file.create(file, "ward-3", ["read"], 30, datetime.now(UTC))
        return file.read_bytes(), key


def _keys(content: bytes, folder: Path) -> Any:
    (folder / "keys.json").write_bytes(content)
    return KeyRing(folder / "keys.json").check(_keys_seed()[1])


def _api_key(content: bytes, folder: Path) -> Any:
    (folder / "keys.json").write_bytes(_keys_seed()[0])
    return KeyRing(folder / "keys.json").check(content.decode("latin-1"))


# -- files beside a model ----------------------------------------------------------------------------------------------


def _scheme(content: bytes, folder: Path) -> Any:
    (folder / SCHEME_FILE).write_bytes(content)
    return guidelines_of(folder)


def _scheme_seed(folder: Path) -> bytes:
    write_scheme(folder, [Guideline("zh", ("disease", "body"))])
    return (folder / SCHEME_FILE).read_bytes()


_SELECTOR = SelectorFile(types=("disease", "body"), size=4, hidden=8)


def _selector(content: bytes, folder: Path) -> Any:
    (folder / SELECTOR_FILE).write_bytes(content)
    return SelectorFile.load(folder)


def _head(content: bytes, folder: Path) -> None:
    (folder / SELECTOR_FILE).write_text(_SELECTOR.model_dump_json())
    (folder / HEAD_FILE).write_bytes(content)
    SpanHead(4, ("disease", "drug"), 8, 4).read(folder)


def _head_seed(folder: Path) -> bytes:
    write_head(SpanHead(4, _SELECTOR.types, 8, 4).state_dict(), _SELECTOR, folder)
    return (folder / HEAD_FILE).read_bytes()


def _calibration(content: bytes, folder: Path) -> Any:
    (folder / "calibration.json").write_bytes(content)
    return Calibration.load(folder / "calibration.json")


def _gazetteer(content: bytes, folder: Path) -> Any:
    (folder / GAZETTEER_FILE).write_bytes(content)
    found = Gazetteer.load(folder)
    return found and found.log_odds("disease", TEXT)


def _gazetteer_seed(folder: Path) -> bytes:
    Gazetteer({"c": ("disease",)}, {"disease": WordCounts.of({"x": 2})}, {"c": WordCounts.of({"x": 3})}).save(folder)
    return (folder / GAZETTEER_FILE).read_bytes()


def _sums(content: bytes, folder: Path) -> None:
    for name in ("a.json", "b.safetensors"):
        (folder / name).write_text(name)
    (folder / SUMS).write_bytes(content)
    check_sums(folder)


def _sums_seed(folder: Path) -> bytes:
    for name in ("a.json", "b.safetensors"):
        (folder / name).write_text(name)
    write_sums(folder)
    return (folder / SUMS).read_bytes()


def _index_seed(folder: Path) -> None:
    vectors = np.eye(4, dtype=np.float32)
    found = [Exemplar(id=f"{i} {MARK}", type="disease", accepted=i > 1, text=MARK, source="c") for i in range(4)]
    ExemplarIndex.build(folder, [(vectors, found)], kind="flat", encoder="0" * 16, dim=4)


def _index(content: bytes, folder: Path, *, name: str) -> Any:
    """One file of an index is another. That of exemplars has a right digest, so that its content is what is refused."""
    _index_seed(folder / "index")
    (folder / "index" / name).write_bytes(content)
    if name.endswith(".jsonl"):
        manifest = json.loads((folder / "index" / MANIFEST).read_bytes())
        manifest["files"][name] = {"size": len(content), "sha256": sha256(folder / "index" / name)}
        (folder / "index" / MANIFEST).write_text(json.dumps(manifest))
    found = ExemplarIndex.load(folder / "index", encoder="0" * 16)
    found.search("disease", np.eye(4, dtype=np.float32), 3)
    return [*found.items()]


@functools.cache
def _index_files() -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        _index_seed(Path(folder) / "index")
        return {file.name: file.read_bytes() for file in (Path(folder) / "index").iterdir()}


def _made(make: Callable[[Path], bytes]) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return make(Path(folder))


# -- settings ----------------------------------------------------------------------------------------------------------


@functools.cache
def _variables() -> list[tuple[type[BaseSettings], str]]:
    return [
        (config, f"{config.model_config.get('env_prefix', '')}{name}".upper())
        for config in classes()
        for name in config.model_fields
    ]


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _setting(content: bytes, folder: Path) -> bool:
    """A variable, which the first two bytes choose, with the rest as its value."""
    variables = _variables()
    config, name = variables[int.from_bytes(content[:2], "big") % len(variables)]
    value = content[2:].replace(b"\x00", b"").decode(errors="surrogateescape")
    with _set(name, value):
        try:
            config()
        except (SettingsError, ValidationError) as error:
            said = problem(error)
            assert said is not None, "no setting's error"
            assert not leaks(said), "quotes the input"
            return False
    return True


def leaks(said: str) -> bool:
    """Whether a message holds the mark of the input."""
    return MARK in said or MARK.encode("unicode_escape").decode() in said or repr(MARK.encode())[2:-1] in said


_SETTINGS = [
    bytes([high, low]) + value
    for high, low in [(n // 256, n % 256) for n in range(0, 120, 3)]
    for value in (MARK.encode(), b"redis://:p@h:6379/0", b'{"a": "b"}', b"1", b"https://h/x")
]


def _fields(model: type[BaseModel]) -> list[str]:
    return list(model.model_fields)


def parsers() -> list[Parser]:
    """All of them."""
    of_document, document_lines = _json(_DOCUMENT), _json(_DOCUMENT) + b"\n" + _json(_DOCUMENT) + b"\n"
    index = _index_files()
    keys, key = _keys_seed()
    formats = [
        ("BioC JSON", "bioc", "a.json", _json(_BIOC)),
        ("BioC XML", "bioc", "a.xml", _BIOC_XML.encode()),
        ("brat", "brat", "", _BRAT.encode()),
        ("PubTator", "pubtator", "a.pubtator", _PUBTATOR.encode()),
        ("CoNLL", "conll", "a.conll", _CONLL.encode()),
        ("CBLUE", "cblue", "a.json", _json(_CBLUE)),
    ]
    row = _json(_ROW)
    candidate = _json({"text_sha256": "0", "start": 1, "end": 2, "type": "dna", "right": False, "confidence": 0.5,
                       "greedy": True})  # fmt: skip
    text = TEXT.encode()
    return [
        Parser("Kafka: documents", lambda c, _: admit(c), (DocumentError,), [of_document], _fields(Document)),
        Parser("Kafka: erasures", lambda c, _: admit_erasure(_record(c, None)), (DocumentError,), [MARK.encode()]),
        Parser(
            "Kafka: feedback",
            lambda c, _: admit_feedback(c, 1.0),
            (DocumentError,),
            [_json(_FEEDBACK)],
            list(_FEEDBACK),
        ),
        Parser("Kafka: entities", _entities, (), [_json(_EXTRACTION)], _fields(Extraction)),
        Parser(
            "Kafka: headers",
            _header,
            (),
            [
                b"biobracket.topic=t\nbiobracket.partition=0\nbiobracket.offset=1\n"
                b"biobracket.timestamp-ms=5\nbiobracket.replay-offset=2\nbiobracket.erased-topic=x"
            ],
        ),
        Parser("Kafka: batches", _batches, (), [_batch(), _batch() * 2]),
        Parser("model: tagged lines", _line, (), [line.encode() for line in _LINES]),
        Parser(
            "model: labelled rows",
            lambda c, _: decode(c.decode("latin-1")),
            (ValueError,),
            [_LINES[1].encode("gb18030")],
        ),
        Parser(
            "Redis: decisions",
            _decision,
            (ValueError,),
            [b'{"entities":[],"candidates":1,"repairs":0}'],
            _fields(SegmentDecision),
        ),
        *(
            Parser(f"corpora: {said}", functools.partial(_converted, format=format, name=name), (CorpusError,), [seed])  # type: ignore[arg-type]
            for said, format, name, seed in formats
        ),
        Parser("corpora: JSON lines", _corpus, (CorpusError,), [row + b"\n" + row], list(_ROW)),
        Parser("training: candidates", _candidates, (CorpusError,), [candidate + b"\n"], ["text_sha256", "start"]),
        Parser(
            "training: predictions",
            _predictions,
            (predictions.PredictionsError,),
            [_json(_EXTRACTION)],
            _fields(Extraction),
        ),
        Parser(
            "training: configuration",
            _training,
            (ConfigError,),
            [b"minutes: 3\nseed: 1\ncorpora:\n  genia:\n    share: 0.5\n"],
        ),
        *(
            Parser(f"files: {said}", functools.partial(_document_file, name=name), (), seeds)
            for said, name, seeds in [
                ("text", "a.txt", [text]),
                ("JSON lines", "a.jsonl", [document_lines]),
                ("JSON", "a.json", [_json([_DOCUMENT, _DOCUMENT]), json.dumps([_DOCUMENT], indent=1).encode()]),
                ("gzip", "a.json.gz", [gzip.compress(document_lines)]),
            ]
        ),
        Parser("files: extract", _text_file, (DocumentError,), [gzip.compress(text), text]),
        Parser("files: audit trail", _trail, (), [_trail_seed()], ["chain", "number", "digest"]),
        Parser("files: lines", _line_file, (LineFileError,), [b"SQLite format 3\x00" + bytes(100)]),
        Parser("command line: forget --metadata", _chosen, (), [b"ward=7", b'n=[1, "x"]']),
        Parser("credentials: tokens", _token, (Rejected,), [_ISSUER.token().encode()]),
        Parser(
            "credentials: JWKS", _jwks, (AuthenticationError,), [_ISSUER.jwks(Issuer("rs", "RS256").jwk())], ["keys"]
        ),
        Parser("credentials: key file", _keys, (AuthenticationError, Rejected), [keys], ["v", "keys"]),
        Parser("credentials: API keys", _api_key, (Rejected,), [key.encode()]),
        Parser("models: scheme.json", _scheme, (AdapterError,), [_made(_scheme_seed)], ["scheme", "guidelines"]),
        Parser(
            "models: selector.json",
            _selector,
            (SelectorError,),
            [_SELECTOR.model_dump_json().encode()],
            _fields(SelectorFile),
        ),
        Parser("models: head.safetensors", _head, (SelectorError,), [_made(_head_seed)]),
        Parser(
            "models: calibration.json",
            _calibration,
            (CalibrationError,),
            [Calibration.default().model_dump_json().encode()],
            ["types"],
        ),
        Parser("models: gazetteer", _gazetteer, (SelectorError,), [_made(_gazetteer_seed)]),
        Parser("models: SHA256SUMS", _sums, (DigestError,), [_made(_sums_seed)]),
        *(
            Parser(f"index: {said}", functools.partial(_index, name=name), (ExemplarError,), [index[name]])
            for said, name in [("manifest", MANIFEST), ("exemplars", "disease.jsonl"), ("vectors", "disease.faiss")]
        ),
        Parser("settings", _setting, (), _SETTINGS),
    ]
