"""Reviewers' feedback on mentions, as it is sent and as it is stored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pydantic import ConfigDict, Field, field_validator, model_validator

from shared.entity_types import TYPES
from shared.messages import MAX_ID_CHARS, Candidate, Lang, Message, Offset, Segment, encodable
from shared.text.language import detect
from shared.text.segmentation import segment

MAX_TEXT = 20_000  # characters: a passage; the selector only looks at the segment that holds the mention


class NewFeedback(Message):
    """A mention that a reviewer accepts or rejects, as it is sent."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        json_schema_extra={
            "examples": [
                {
                    "text": "The patient was kept in a cold room.",
                    "start": 26,
                    "end": 30,
                    "type": "disease",
                    "accepted": False,
                    "reviewer": "a.chen",
                }
            ]
        },
    )

    id: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_ID_CHARS,
        description="Identifier; if absent, derived from text, span, type and document, so that later feedback on the "
        "same mention replaces this.",
    )
    text: str = Field(
        min_length=1, max_length=MAX_TEXT, description="The text around the mention: its sentence, or more."
    )
    start: Offset
    end: Offset
    type: str = Field(description="Entity type key.")
    accepted: bool = Field(description="Whether this is a correct mention of the type.")
    document_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_ID_CHARS,
        description="Identifier of the document that the text is of, with which the feedback is erased.",
    )
    lang: Lang | None = Field(default=None, description="Language of the text; detected if absent.")
    reviewer: str | None = Field(default=None, max_length=MAX_ID_CHARS, description="Who gave the feedback.")
    time: float | None = Field(
        default=None,
        ge=0,
        lt=1e11,
        allow_inf_nan=False,
        description="When it was given, Unix seconds; the time of arrival if absent.",
    )

    @field_validator("id", "text", "document_id", "reviewer")
    @classmethod
    def _unicode(cls, value: str | None) -> str | None:
        return None if value is None else encodable(value)

    @field_validator("type")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in TYPES:
            raise ValueError("is not a known entity type")
        return value

    @model_validator(mode="after")
    def _span(self) -> NewFeedback:
        if not self.start < self.end <= len(self.text):
            raise ValueError("end: must be after start and within the text")
        mention = self.text[self.start : self.end]
        if mention != mention.strip():
            raise ValueError("start: the span begins or ends with white space")
        return self

    def feedback(self, now: float) -> Feedback:
        """The feedback to store, with an identifier and a time; ``now``: Unix seconds."""
        what = f"{self.type}\x1f{self.start}-{self.end}\x1f{self.text}"
        if self.document_id is not None:  # the same sentence in another document is another mention
            what += f"\x1f{self.document_id}"
        derived = hashlib.sha256(what.encode()).hexdigest()[:32]
        given = self.model_dump()
        return Feedback(**given | {"id": self.id or derived, "time": now if self.time is None else self.time})


class Feedback(NewFeedback):
    """Feedback as it is stored."""

    id: str = Field(min_length=1, max_length=MAX_ID_CHARS, description="Identifier.")
    time: float = Field(ge=0, lt=1e11, allow_inf_nan=False, description="When it was given, Unix seconds.")

    @property
    def mention(self) -> str:
        """The text between the offsets."""
        return self.text[self.start : self.end]

    def candidate(self) -> Candidate:
        """The mention in its segment, as the selector would see it if the text were a document."""
        lang = self.lang or detect(self.text)
        around = [(s, e) for s, e in segment(self.text, lang) if s < self.end and e > self.start]
        start, end = min([self.start, *(s for s, _ in around)]), max([self.end, *(e for _, e in around)])
        return Candidate(
            segment=Segment(document_id=self.id, index=0, start=start, end=end, text=self.text[start:end], lang=lang),
            type=self.type,
            start=self.start,
            end=self.end,
            text=self.mention,
            generator_confidence=1.0,
        )


class FeedbackPage(Message):
    """A page of the feedback."""

    feedback: tuple[Feedback, ...] = Field(description="Most recently changed first.")
    next: int | None = Field(description="`before` of the next page; null on the last one.")


@dataclass(frozen=True, slots=True)
class Changes:
    """What changed since a version. ``restarted``: the store was emptied, and everything known before is gone."""

    version: int
    given: tuple[Feedback, ...]
    gone: tuple[str, ...]
    restarted: bool = False
