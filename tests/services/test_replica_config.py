"""Every service takes its replica settings from one base, under its own prefix."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.cli.console import configs
from services.generation.config import GenerationConfig
from services.ingest.config import IngestConfig
from services.query.config import QueryConfig
from services.replica_config import ReplicaConfig, RequestReplicaConfig


def test_every_service_has_them() -> None:
    services = [config for config in configs() if config.model_config["env_prefix"] != "BIOBRACKET_"]
    assert len(services) == 6
    for config in services:
        assert isinstance(config, ReplicaConfig)
        assert isinstance(config, RequestReplicaConfig) == (type(config) is not IngestConfig)  # it is scaled by lag


@pytest.mark.parametrize("name", list(RequestReplicaConfig.model_fields))
def test_another_default_keeps_bounds_and_description(name: str) -> None:
    base, own = RequestReplicaConfig.model_fields[name], GenerationConfig.model_fields[name]
    assert (own.description, own.metadata) == (base.description, base.metadata)
    with pytest.raises(ValidationError):
        GenerationConfig.model_validate({name: -1})


def test_each_service_reads_its_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIOBRACKET_QUERY_MAX_REPLICAS", "7")
    monkeypatch.setenv("BIOBRACKET_MAX_REPLICAS", "9")
    assert QueryConfig().max_replicas == 7
    assert IngestConfig().max_replicas == 1
