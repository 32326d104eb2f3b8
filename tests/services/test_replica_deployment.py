"""What Ray Serve is told of a service."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError
from ray.serve.config import AutoscalingPolicy

from services.generation.config import GenerationConfig
from services.ingest.config import IngestConfig
from services.ingest.scaling import LAG
from services.parsing.config import ParsingConfig
from services.pipeline.config import PipelineConfig
from services.query.config import QueryConfig
from services.replica_config import ComputeReplicaConfig, ReplicaConfig, RequestReplicaConfig
from services.replica_deployment import RETRY_AFTER_S, deployment
from services.selection.config import SelectionConfig
from tests.support.serving import DEPLOYMENTS, TICK_S, Autoscaler, closed_loop, fits


class Service:
    """A service that does nothing."""


def test_requests_scale_a_service() -> None:
    config = RequestReplicaConfig(
        min_replicas=2,
        max_replicas=5,
        num_cpus=0.5,
        max_ongoing_requests=7,
        target_ongoing_requests=3.0,
        max_queued_requests=9,
    )
    made: Any = deployment("service", config, num_gpus=0.25)(Service)
    assert (made.name, made.func_or_class) == ("service", Service)
    assert made.ray_actor_options == {"num_cpus": 0.5, "num_gpus": 0.25}
    assert (made.max_ongoing_requests, made.max_queued_requests) == (7, 9)
    assert (made.backpressure_config.status_code, made.backpressure_config.retry_after_s) == (503, RETRY_AFTER_S)
    scaling = made._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (2, 5, 3.0)


def test_a_service_is_placed_where_the_resources_it_names_are() -> None:
    made: Any = deployment("service", ReplicaConfig(resources={"light": 0.01}))(Service)
    assert made.ray_actor_options == {"num_cpus": 0.1, "resources": {"light": 0.01}}


def scaled(**_: Any) -> None:
    """A policy."""


def test_a_policy_scales_a_service_and_other_options_are_passed_on() -> None:
    policy = AutoscalingPolicy(policy_function=scaled)
    scaling = {"policy": policy, "upscale_delay_s": 7.0}
    made: Any = deployment("service", ReplicaConfig(), scaling=scaling, graceful_shutdown_timeout_s=42.0)(Service)
    assert made.ray_actor_options == {"num_cpus": 0.1}
    assert made._deployment_config.graceful_shutdown_timeout_s == 42.0
    given = made._deployment_config.autoscaling_config
    assert (given.policy.policy_function, given.upscale_delay_s) == (policy.policy_function, 7.0)


@pytest.mark.parametrize("name", sorted(set(DEPLOYMENTS) - {"ingest"}))
def test_no_service_queues_without_bound(name: str) -> None:
    assert DEPLOYMENTS[name].max_queued_requests > 0


def test_what_one_caller_may_send_finds_room_in_the_queues() -> None:
    """Under the defaults, work that was taken up is never refused further down: its callers' windows fit the queues."""
    pipeline, query = PipelineConfig(), QueryConfig()
    assert pipeline.max_queued_requests >= IngestConfig().max_documents
    assert pipeline.max_queued_requests >= query.max_extractions
    assert query.max_extractions < query.max_ongoing_requests  # the rest is for results and probes
    chunks = pipeline.max_ongoing_requests * pipeline.chunks_in_flight
    assert ParsingConfig().max_queued_requests >= chunks
    assert SelectionConfig().max_queued_requests >= chunks
    generation = GenerationConfig()
    assert generation.max_queued_requests >= pipeline.requests_in_flight
    assert generation.max_queued >= generation.max_ongoing_requests * pipeline.request_segments


@pytest.mark.parametrize("name", sorted(set(DEPLOYMENTS) - {"ingest"}))
def test_requests_in_flight_scale_each_service_up_and_down(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    scaler = Autoscaler(monkeypatch, name, max_replicas=8)
    target = scaler.config.target_ongoing_requests
    assert scaler.settle(0.0) == 1
    assert scaler.settle(target) == 1
    assert scaler.settle(target * 2.5) == 3
    assert scaler.settle(target * 100) == 8
    assert scaler.settle(target * 2) == 2
    assert scaler.settle(0.0) == 1
    assert target < DEPLOYMENTS[name].max_ongoing_requests  # else a replica is full before another one is asked for


def test_lag_scales_ingest_and_a_full_window_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    config = IngestConfig()
    scaler = Autoscaler(monkeypatch, "ingest", max_replicas=8)
    assert scaler.settle(0.0, {LAG: {"a": float(config.max_documents)}}) == 1
    assert scaler.settle(0.0, {LAG: {"a": 2.5 * config.lag_per_replica}}) == 3
    assert scaler.settle(0.0, {LAG: {"a": 1.0 * config.lag_per_replica, "b": 0.0, "c": 0.0}}) == 1


def test_a_moment_of_load_scales_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scaler = Autoscaler(monkeypatch, "generation")
    scaler.settle(0.0)
    assert scaler.tick(1000.0) == 1


@pytest.mark.parametrize("per_replica", [2.0, 5.0, 20.0])
def test_one_ingest_replica_with_short_notes_scales_generation_beyond_two(
    monkeypatch: pytest.MonkeyPatch, per_replica: float
) -> None:
    """The window of the defaults, a segment a note, where generation is what holds the notes up."""
    pipeline, generation = PipelineConfig(), GenerationConfig()
    window = min(
        IngestConfig().max_documents,
        pipeline.max_ongoing_requests,  # of the one replica that pipeline starts with
        pipeline.requests_in_flight,
    )
    scaler = Autoscaler(monkeypatch, "generation")
    seen = closed_loop(scaler, window, elsewhere_s=0.05, per_replica=per_replica)
    assert seen[0] == 1
    assert seen[-1] == scaler.config.max_replicas == generation.max_replicas
    assert generation.max_replicas > 2


def test_generation_does_not_scale_where_it_is_not_what_holds_notes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    window = IngestConfig().max_documents
    assert closed_loop(Autoscaler(monkeypatch, "generation"), window, elsewhere_s=2.0, per_replica=1000.0)[-1] == 1


def test_replicas_come_and_go_no_faster_than_the_delay_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """More replicas answer more, which leaves fewer waiting: a loop that must not add and remove them by turns."""
    for elsewhere_s in (0.05, 0.5, 1.0, 2.0):
        scaler = Autoscaler(monkeypatch, "generation")
        seen = closed_loop(scaler, 64, elsewhere_s=elsewhere_s, per_replica=20.0)
        removals = sum(after < before for before, after in pairwise(seen))
        assert removals <= len(seen) * TICK_S / scaler.config.downscale_delay_s


def reserved(name: str) -> float:
    return float(DEPLOYMENTS[name].ray_actor_options["num_cpus"])


def test_a_service_reserves_what_its_threads_keep_busy() -> None:
    assert GenerationConfig().reserved_cpus == GenerationConfig().replica_threads == 1
    assert SelectionConfig().reserved_cpus < SelectionConfig().replica_threads == 1  # which is idle most of the time
    for name, config in (("generation", GenerationConfig()), ("selection", SelectionConfig())):
        assert reserved(name) == config.reserved_cpus


@pytest.mark.parametrize(
    ("given", "threads", "cpus"),
    [
        ({"num_cpus": 1.0}, 1, 1.0),
        ({"threads": 4}, 4, 4.0),
        ({"num_cpus": 4.0}, 4, 4.0),
        ({"num_cpus": 0.5}, 1, 0.5),
        ({"num_cpus": 3.5}, 3, 3.5),
        ({"num_cpus": 1.0, "threads": 2}, 2, 1.0),  # asked for in so many words
    ],
)
@pytest.mark.parametrize("kind", [GenerationConfig, SelectionConfig])
def test_threads_and_reserved_cpus_follow_one_another(
    kind: type[ComputeReplicaConfig], given: dict[str, Any], threads: int, cpus: float
) -> None:
    config = kind(**given)
    assert (config.replica_threads, config.reserved_cpus) == (threads, cpus)


def test_two_engines_of_four_threads_do_not_share_a_node_of_two_cpus() -> None:
    engine = GenerationConfig(threads=4).reserved_cpus
    assert not fits([engine], [2.0])
    assert not fits([engine, engine], [4.0])
    assert fits([engine, engine], [4.0, 4.0])


@pytest.mark.parametrize(
    ("replicas", "nodes"), [(1, [2.0]), (1, [4.0]), (2, [2.0, 2.0]), (2, [4.0, 4.0]), (8, [4.0] * 8)]
)
def test_replicas_of_every_service_fit_nodes_of_two_and_of_four_cpus(replicas: int, nodes: list[float]) -> None:
    assert fits([reserved(name) for name in DEPLOYMENTS for _ in range(replicas)], nodes)
    # Their threads do not outnumber the cores either.
    busy = replicas * (GenerationConfig().replica_threads + SelectionConfig().replica_threads)
    assert busy <= sum(nodes)


def test_a_replica_has_a_gpu_for_each_shard() -> None:
    assert GenerationConfig(num_gpus=0.5).tensor_parallel == 1
    assert GenerationConfig(tensor_parallel=2, num_gpus=2).num_gpus == 2
    for gpus in ({}, {"num_gpus": 1.0}):
        with pytest.raises(ValidationError, match="BIOBRACKET_GENERATION_TENSOR_PARALLEL"):
            GenerationConfig(tensor_parallel=2, **gpus)  # type: ignore[arg-type]
