"""The messages between services: frozen, versioned, JSON on every wire.

Offsets are Unicode code points into the document as it arrived; ``end`` is exclusive.
``text[start:end] == entity.text`` holds on every record that leaves the system (see :func:`check_offsets`).
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

Lang = Literal["zh", "en"]
LANGS: tuple[Lang, ...] = get_args(Lang)
Probability = Annotated[float, Field(ge=0.0, le=1.0, description="From 0 to 1.")]
Offset = Annotated[int, Field(ge=0, description="Unicode code points from the start; an end is exclusive.")]

MAX_ID_CHARS = 512  # a Redis key and a Kafka key stay small; ids of this field (PMIDs, encounter numbers) are far below
MAX_TYPES = 64  # the names of all types stand in the prompt of every segment


def encodable(value: str) -> str:
    """The value. ValueError where it holds a lone surrogate, which no encoding has bytes for."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # `from None`: the cause would carry the clinical text into a traceback.
        raise ValueError(
            f"holds a lone surrogate at character {error.start}, which is not Unicode text; "
            "decode the source with its right encoding or replace the character"
        ) from None
    return value


class Message(BaseModel):
    """Base of every message. ``v`` is the schema version; a reader refuses a version it does not know."""

    # Inputs are clinical text: an error that one is refused with must not quote it.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    v: Literal[1] = Field(default=1, description="Schema version of the message.")


class OpenMessage(Message):
    """Base of what comes in by stream, is stored and leaves: fields that a reader does not know are kept.

    So this version reads what the next minor one writes, and writes it on unchanged.
    """

    model_config = ConfigDict(frozen=True, extra="allow")


class Document(OpenMessage):
    """A text to extract entities from."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        json_schema_extra={
            "examples": [
                {"id": "note-1", "text": "Activation of the CD28 surface receptor."},
                {"id": "bl-2", "text": "患者因右肺腺癌入院。", "lang": "zh", "types": ["disease", "body"]},
            ]
        },
    )

    id: str = Field(
        min_length=1, max_length=MAX_ID_CHARS, description="Identifier, unique per document; the Kafka and Redis key."
    )
    text: str = Field(description="The text, any Unicode string without lone surrogates; it is never altered.")
    lang: Lang | None = Field(default=None, description="Language of the text; detected when absent.")
    types: tuple[str, ...] | None = Field(
        default=None,
        max_length=MAX_TYPES,
        description="Entity type keys to look for; the default set of the language when absent.",
    )
    metadata: dict[str, JsonValue] = Field(default_factory=dict, description="Carried along, never interpreted.")

    @field_validator("id", "text")
    @classmethod
    def _encodable(cls, value: str) -> str:
        return encodable(value)

    @field_validator("types")
    @classmethod
    def _unique(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else tuple(dict.fromkeys(value))

    @field_validator("metadata", mode="before")
    @classmethod
    def _absent(cls, value: Any) -> Any:
        return {} if value is None else value

    @property
    def sha256(self) -> str:
        """Hex digest of the text's UTF-8 bytes."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


class SourcePosition(OpenMessage):
    """Where a record stands in the stream: of two versions of a document, the one at the later position is served."""

    topic: str = Field(description="Kafka topic.")
    topic_id: str = Field(default="", description="Hex UUID of the topic, which a topic made anew changes; or empty.")
    partition: int = Field(ge=0, description="Partition of the topic.")
    offset: int = Field(ge=0, description="Offset in the partition.")
    timestamp_ms: int = Field(description="Time of the record, in milliseconds since 1970.")

    def later_than(self, other: SourcePosition) -> bool:
        """Whether this position is the later one: by offset within a partition, else by time, then offset.

        Across partitions that is as right as the clocks of the producers are. Key records by document id: then all
        versions of a document are in one partition.
        """
        if self.same_log(other):
            return self.offset > other.offset
        return self._order > other._order

    def same_log(self, other: SourcePosition) -> bool:
        """Whether offsets of both can be compared; an unknown topic id equals any."""
        return (self.topic, self.partition) == (other.topic, other.partition) and (
            self.topic_id == other.topic_id or not (self.topic_id and other.topic_id)
        )

    @property
    def _order(self) -> tuple[int, int, int, str]:
        return self.timestamp_ms, self.offset, self.partition, self.topic_id


class Erasure(OpenMessage):
    """A document that is to be forgotten: what came at this position or before. It takes the place of a version."""

    document_id: str = Field(min_length=1, max_length=MAX_ID_CHARS, description="Identifier of the document.")
    source: SourcePosition = Field(description="Where the erasure stands in the stream.")

    @field_validator("document_id")
    @classmethod
    def _encodable(cls, value: str) -> str:
        return encodable(value)


class Segment(Message):
    """A stretch of a document that is tagged at once: ``document.text[start:end] == text``."""

    document_id: str
    index: int = Field(ge=0, description="Position among the document's segments.")
    start: Offset
    end: Offset
    text: str
    lang: Lang

    @model_validator(mode="after")
    def _length(self) -> Segment:
        if self.end - self.start != len(self.text):
            raise ValueError("end - start differs from the length of text")
        return self


class Alternative(Message):
    """A mention the generator did not take but gave a real chance. Offsets within the segment."""

    start: Offset
    end: Offset
    type: str = Field(description="Entity type key.")
    logprob: float = Field(le=0.0, description="Natural log-probability of its brackets, its type included.")


class TaggedLine(Message):
    """What the generator says of one segment: its mentions of all types asked for (scheme ``labelled.v1``).

    The mentions of ``tagged`` are numbered by their opening brackets. The probability of one is ``presence`` times
    those of its two brackets.
    """

    segment: Segment
    types: tuple[str, ...] = Field(description="Entity type keys that were asked for.")
    tagged: str = Field(
        description="Empty where there is no mention, else the segment's text with brackets, the type of each mention "
        "before its closing bracket. Mentions that cross one of an earlier copy of the text stand in a further copy, "
        "on a line of its own."
    )
    presence: Probability = Field(description="Probability that the segment has a mention at all.")
    brackets: tuple[float, ...] | None = Field(
        default=None,
        description="Natural log-probability of each unescaped bracket of `tagged`, in order, a closing one's with its "
        "type; none if unknown.",
    )
    alternatives: tuple[Alternative, ...] = Field(default=(), description="Mentions beyond the greedy ones.")


class Candidate(Message):
    """A possible mention. Offsets within the document."""

    segment: Segment
    type: str
    start: Offset
    end: Offset
    text: str
    generator_confidence: Probability
    greedy: bool = Field(default=True, description="Whether the generator's own best line had it.")


class Parsed(Message):
    """What parsing made of tagged lines."""

    candidates: tuple[Candidate, ...]
    repairs: dict[str, int] = Field(default_factory=dict, description="How often each kind of repair was needed.")
    repaired: dict[int, int] = Field(default_factory=dict, description="Repairs by the index of the segment, if any.")


class Evidence(OpenMessage):
    """A labelled exemplar near a candidate, which the selector's decision rests on."""

    text: str | None = Field(description="The exemplar's mention; none where its source may not be passed on.")
    type: str = Field(description="Its entity type key.")
    accepted: bool = Field(description="Whether it is a right mention of the type, or a wrong one.")
    similarity: float = Field(description="Cosine similarity to the candidate, from -1 to 1.")


class Entity(OpenMessage):
    """A mention that was kept. Offsets within the document."""

    id: str = Field(description="Stable within the document: `<type>:<start>-<end>`.")
    start: Offset
    end: Offset
    text: str = Field(description="What stands between the offsets, as it stands there.")
    type: str = Field(description="Entity type key.")
    confidence: Probability = Field(description="Calibrated probability that the mention is right.")
    generator_confidence: Probability = Field(description="Probability of the mention by the generator alone.")
    evidence: tuple[Evidence, ...] = Field(default=(), description="Labelled exemplars the decision rests on.")
    parent_id: str | None = Field(default=None, description="The smallest kept entity that contains this one.")


class Selected(Message):
    """What selection kept of a document's candidates."""

    entities: tuple[Entity, ...]
    exemplars: str = Field(default="", description="State of the exemplars it was decided with; empty without any.")


class Basis(Message):
    """What selection decides by, besides the model and the feedback of reviewers."""

    index: str = Field(description="Names the exemplars of the index; empty where there are none.")
    settings: str = Field(description="The settings of selection, as JSON.")


class Counts(OpenMessage):
    """What an extraction handled."""

    characters: int = Field(default=0, description="Length of the text in Unicode code points.")
    segments: int = Field(default=0, description="Segments the text was split into.")
    cached_segments: int = Field(default=0, description="Segments that a cache spared the generator.")
    candidates: int = Field(default=0, description="Possible mentions that selection judged.")
    entities: int = Field(default=0, description="Mentions that were kept.")
    repairs: int = Field(default=0, description="Corrections the parser made to tagged lines.")
    refused: int = Field(default=0, description="Records that broke the offset invariant; each is a bug.")


class Extraction(OpenMessage):
    """The entities of a document."""

    document_id: str = Field(description="Identifier of the document.")
    text_sha256: str = Field(description="Hex SHA-256 of the text's UTF-8 bytes.")
    lang: Lang = Field(description="Language of the text, as given or detected.")
    types: tuple[str, ...] = Field(description="Entity type keys that were looked for.")
    entities: tuple[Entity, ...] = Field(description="The mentions, nested ones with the id of their parent.")
    metadata: dict[str, JsonValue] = Field(default_factory=dict, description="The document's, as it came.")
    source: SourcePosition | None = Field(
        default=None, description="Where the document stood in the stream; none if it came over HTTP."
    )
    model_revision: str = Field(
        description="Changes when base model, adapter, selector, calibration or tagging scheme does."
    )
    exemplars: str = Field(
        default="", description="Changes when the selector's index or the feedback of reviewers does; empty without."
    )
    warnings: tuple[str, ...] = Field(default=(), description="Codes of what was unusual, such as `empty-text`.")
    counts: Counts = Field(default=Counts(), description="What the extraction handled.")
    timings: dict[str, float] = Field(default_factory=dict, description="Seconds by stage.")

    @property
    def key(self) -> str:
        """What makes a result unique: document, text, model, exemplars and types. Writing it twice changes nothing."""
        what = "\x1f".join((self.text_sha256, self.model_revision, self.exemplars, *sorted(self.types)))
        return f"{self.document_id}\x1f{hashlib.sha256(what.encode('utf-8')).hexdigest()[:32]}"


def entity_id(type_: str, start: int, end: int) -> str:
    """The id of an entity within its document."""
    return f"{type_}:{start}-{end}"


def exemplars_state(index: str, version: int) -> str:
    """``exemplars`` of what is decided with an index and a version of the feedback; empty without either."""
    return f"{index}.{version}" if index or version else ""


def check_offsets(text: str, entity: Entity) -> bool:
    """Whether the entity's offsets give exactly its text."""
    return 0 <= entity.start < entity.end <= len(text) and text[entity.start : entity.end] == entity.text


class Mention(OpenMessage):
    """An entity and the document that has it."""

    document_id: str = Field(description="Identifier of the document.")
    entity: Entity = Field(description="The mention, as it stands in the document's result.")
