"""Servers and settings for every test: real ones, on free ports, with a data folder that goes away."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import redis
from pydantic import SecretStr

from services.embedded.servers import Broker, Valkey
from shared.settings import Settings
from tests.support.kafka import Kafka, Unavailable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shared.text.grammar import CopyTokens

# No deadline: a busy machine is no reason to fail.
hypothesis.settings.register_profile("biobracket", deadline=None, max_examples=60)
hypothesis.settings.load_profile("biobracket")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with Broker(tmp_path_factory.mktemp("broker")) as server:
        yield server


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """Apache Kafka; tests that need it are skipped where Java or Maven is missing."""
    try:
        server = Kafka(tmp_path_factory.mktemp("kafka"))
    except Unavailable as missing:
        pytest.skip(str(missing))
    with server:
        yield server


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def fresh() -> Callable[[str], Settings]:
    """Makes settings of a broker, by its address, with topics that nobody else uses and that do not exist yet."""

    def make(kafka: str) -> Settings:
        unique = uuid.uuid4().hex[:12]
        return Settings(
            kafka=kafka,
            topic_documents=f"documents-{unique}",
            topic_entities=f"entities-{unique}",
            topic_dead_letters=f"dead-letters-{unique}",
            topic_feedback=f"feedback-{unique}",
            partitions=3,
        )

    return make


@pytest.fixture(params=["kafka", "broker"])
def each_broker(
    request: pytest.FixtureRequest, valkey: Valkey, tmp_path: Path, fresh: Callable[[str], Settings]
) -> Settings:
    """As `settings`, but on Apache Kafka as well."""
    address = request.getfixturevalue(request.param).url
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return fresh(address).model_copy(update={"redis": SecretStr(valkey.url), "data": tmp_path})


@pytest.fixture
def settings(broker: Broker, valkey: Valkey, tmp_path: Path, fresh: Callable[[str], Settings]) -> Settings:
    """Settings of both servers, with topics of the test's own (not yet created) and an empty store."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return fresh(broker.url).model_copy(update={"redis": SecretStr(valkey.url), "data": tmp_path})


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """The tokenizer of a tiny base model."""
    from shared.model.base_model import load_tokenizer  # here: it loads PyTorch, which most tests can do without
    from tests.support.tiny import make_tiny_model

    return load_tokenizer(Settings(base_model=str(make_tiny_model(tmp_path_factory.mktemp("tiny")))))


@pytest.fixture(scope="session")
def tokens(tokenizer: PreTrainedTokenizerBase) -> CopyTokens:
    """What lines over that tokenizer are made of."""
    from shared.text.grammar import CopyTokens

    return CopyTokens(tokenizer)


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The folder that holds corpora by name."""
    folder = os.environ.get("BIOBRACKET_CORPORA")
    if not folder:
        pytest.skip("BIOBRACKET_CORPORA is not set: no corpora")
    if not Path(folder).is_dir():
        pytest.skip("BIOBRACKET_CORPORA names no folder: no corpora")
    return Path(folder)
