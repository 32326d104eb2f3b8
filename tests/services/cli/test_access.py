from __future__ import annotations

import pytest

from tests.support.cli import SECRET, call, failed


def test_rules_for_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_TOPIC_DOCUMENTS", "ward.documents")
    monkeypatch.setenv("BIOBRACKET_INGEST_GROUP", "ward")
    assert call("access", "kafka", "--service", "query").stdout == (
        "--add --allow-principal User:biobracket-query --operation Write --topic ward.documents\n"
    )
    monkeypatch.setenv("BIOBRACKET_KAFKA_USER", "ner-{service}")
    lines = call("access", "kafka").stdout.splitlines()
    assert "--add --allow-principal User:ner-ingest --operation Read --group ward" in lines
    assert "--add --allow-principal User:ner-operator --operation DescribeConfigs --topic ward.documents" in lines


def test_rules_for_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_REDIS", f"rediss://ner-{{service}}:{SECRET}@redis:6379/0")
    said = call("access", "redis").stdout
    assert SECRET not in said
    assert [line.split()[1] for line in said.splitlines()] == [
        "ner-ingest",
        "ner-pipeline",
        "ner-query",
        "ner-selection",
        "ner-operator",
    ]


def test_a_service_that_is_none() -> None:
    assert "choose of ingest" in failed(call("access", "redis", "--service", "producer"))
