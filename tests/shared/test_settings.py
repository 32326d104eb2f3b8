from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from pydantic_settings import SettingsError

from services.ingest.config import IngestConfig
from shared.messages import Document
from shared.settings import Settings, problem, settings


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_field_is_described(name: str) -> None:
    assert Settings.model_fields[name].description


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_KAFKA", "broker-1:9092,broker-2:9092")
    monkeypatch.setenv("BIOBRACKET_KAFKA_SECURITY", '{"client_id": "r1"}')
    monkeypatch.setenv("BIOBRACKET_PARTITIONS", "12")
    settings = Settings()
    assert settings.kafka == "broker-1:9092,broker-2:9092"
    assert settings.kafka_security == {"client_id": SecretStr("r1")}
    assert settings.partitions == 12


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_REDIS", "redis://:hunter2@store:6379/0")
    monkeypatch.setenv("BIOBRACKET_REDIS_CACHE", "redis://:hunter2@store:6379/0")
    monkeypatch.setenv("BIOBRACKET_KAFKA_PASSWORD", "hunter2")
    monkeypatch.setenv("BIOBRACKET_KAFKA_SECURITY", '{"proxy_url": "socks5://u:hunter2@proxy:1080"}')
    for shown in (repr(Settings()), str(Settings()), str(Settings().model_dump()), Settings().model_dump_json()):
        assert "hunter2" not in shown


def test_a_service_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().of_service("ner-{service}") == "ner-operator"
    monkeypatch.setenv("BIOBRACKET_SERVICE", "producer")
    settings.cache_clear()
    try:
        assert settings().of_service("ner-{service}") == "ner-producer"
        assert settings("ingest").of_service(Path("/secrets/{service}")) == "/secrets/ingest"
    finally:
        settings.cache_clear()


def test_a_bad_value_names_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_LOG_FORMAT", "xml")
    with pytest.raises(ValidationError, match="log_format"):
        Settings()


@pytest.mark.parametrize(
    "password", ["zq#17", "zq/17", "17/zq", "zq?17", "zq?a=1", "zq[17", "zq]17", "#", "12/3", "12?x=1", "12#3", "a@b/c"]
)
@pytest.mark.parametrize("user", ["", "user"])
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_password_that_would_be_read_as_an_address_is_refused(scheme: str, user: str, password: str) -> None:
    with pytest.raises(ValidationError, match="percent-encode") as error:
        Settings(redis=f"{scheme}://{user}:{password}@store:6379/2")
    assert "zq" not in str(error.value)
    assert "zq" not in (problem(error.value) or "")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Cs", "Z"]), min_size=1))
def test_a_password_is_read_as_it_is_or_refused(password: str) -> None:
    encoded = Settings(redis=f"redis://:{quote(password, safe='')}@store:6380/2").redis.get_secret_value()
    for url in (encoded, f"redis://:{password.replace('%', '%25')}@store:6380/2"):
        try:
            address = redis.Redis.from_url(Settings(redis=url).redis.get_secret_value()).get_connection_kwargs()
        except ValidationError:
            assert url != encoded
            # Also as compatible characters: an address is read in NFKC.
            assert set(unicodedata.normalize("NFKC", password)) & set("#/?[]@:")
        else:
            assert (address["host"], address["port"], address["db"]) == ("store", 6380, 2)
            assert address["password"] == password


@pytest.mark.parametrize(
    "url",
    [
        "redis://store",
        "redis:///1",
        "redis://[::1]:6379/0",
        "redis://u:p@h:1/2?protocol=3",
        "unix://:p@/tmp/redis.sock?db=1",
    ],
)
def test_addresses_of_every_kind_are_taken(url: str) -> None:
    assert Settings(redis=url).redis.get_secret_value() == url


@pytest.mark.parametrize(
    "url", ["store:6379", "http://store", "redis://store:x/0", "redis://store/zero", "redis://:p@/0"]
)
def test_what_is_no_address_of_a_store_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="redis"):
        Settings(redis=url)


@pytest.mark.parametrize(
    ("config", "variable", "value", "says"),
    [
        (Settings, "BIOBRACKET_KAFKA_SECURITY", "{security_protocol: zq17}", "is not JSON.*double quotes"),
        (Settings, "BIOBRACKET_KAFKA_SECURITY", "[]", "dictionary"),
        (Settings, "BIOBRACKET_PARTITIONS", "0", "greater than or equal to 1"),
        (Settings, "BIOBRACKET_REDIS", "redis://:zq17#@store", "percent-encode"),
        (Settings, "BIOBRACKET_KAFKA_PROTOCOL", "zq17", "SASL_SSL"),
        (Settings, "BIOBRACKET_KAFKA_USER", "zq17,b", "name another user"),
        (Settings, "BIOBRACKET_KAFKA_KEY", "zq17", "set BIOBRACKET_KAFKA_CERTIFICATE"),
        (Settings, "BIOBRACKET_REDIS_KEY", "zq17", "set BIOBRACKET_REDIS_CERTIFICATE"),
        (Settings, "BIOBRACKET_KAFKA_TOKEN_URL", "http://zq17", "no https URL"),
        (IngestConfig, "BIOBRACKET_INGEST_MAX_DOCUMENTS", "zq17", "valid integer"),
    ],
)
def test_a_setting_that_cannot_be_read_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, config: type[Settings], variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises((SettingsError, ValidationError)) as error:
        config()
    said = problem(error.value)
    assert said is not None
    assert said.startswith(f"{variable}: ")
    assert re.search(says, said)
    assert "or unset it for " in said
    assert "\n" not in said
    assert "zq17" not in said


def test_two_passwords_are_one_too_many() -> None:
    with pytest.raises(ValidationError, match="BIOBRACKET_KAFKA_PASSWORD as well"):
        Settings(kafka_password="zq17", kafka_password_file="file")
    for name in ("redis", "redis_cache"):
        with pytest.raises(ValidationError, match=f"BIOBRACKET_{name.upper()} holds a password"):
            Settings(**{name: "redis://u:zq17@store", f"{name}_password_file": "file"})


def test_other_errors_are_no_problem_of_a_setting() -> None:
    with pytest.raises(ValidationError) as error:
        Document.model_validate({})
    assert problem(error.value) is None
