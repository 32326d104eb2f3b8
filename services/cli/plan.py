"""The command that chooses replicas, pods and nodes: ``biobracket plan``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated

import typer

from services.cli.console import fail, out

_DAY_S = 86_400
# The least with which a pod or a node may be lost without a pause.
_FLOOR = 2
# Replicas of generation, which does nearly all the work, for one of another service: generous rules of thumb, not
# measurements. Serve scales below them by itself.
_PER_SELECTION, _PER_LIGHT, _PER_INGEST = 4, 4, 2
_QUERY = 4
_LIGHT_POD_CPUS = 2
# Of a light pod's cores reserved by replicas; the rest is Ray's and the proxy's.
_LIGHT_SHARE = 0.75
_HEAD_CPUS = 1
# In k8s/base/rayservice.yaml.
_GROUPS = ("light", "generation", "selection")


@dataclass(frozen=True, slots=True)
class Load:
    """What comes in.

    ``cached``: share of segments that no model reads; ``peak``: the busiest hour's rate over the mean.
    """

    documents_per_day: int
    segments_per_document: float
    cached: float
    peak: float

    @property
    def segments_per_second(self) -> float:
        """At the peak, for the model."""
        return self.documents_per_day * self.segments_per_document * (1 - self.cached) * self.peak / _DAY_S


@dataclass(frozen=True, slots=True)
class Plan:
    """Most replicas of each service, pods of each worker group, and nodes, at the peak."""

    generation: int
    selection: int
    ingest: int
    pipeline: int
    parsing: int
    query: int
    pods: dict[str, int]
    cpus: int
    nodes: int
    partitions: int


def plan(
    load: Load, *, per_replica: float, utilisation: float, replica_cpus: int, node_cpus: int, gpus: int = 0
) -> Plan:
    """What a load needs where a replica of generation was measured to do ``per_replica`` segments a second.

    Raises ValueError where a pod does not fit a node.
    """
    from services.ingest.config import IngestConfig
    from services.parsing.config import ParsingConfig
    from services.pipeline.config import PipelineConfig
    from services.query.config import QueryConfig

    if replica_cpus > node_cpus:
        raise ValueError("a replica of generation has more cores than a node; lower --cpus, or raise --node-cpus")
    generation = max(_FLOOR, ceil(load.segments_per_second / (per_replica * utilisation)))
    selection = max(_FLOOR, ceil(generation / _PER_SELECTION))
    light = max(_FLOOR, ceil(generation / _PER_LIGHT))
    ingest = max(_FLOOR, ceil(generation / _PER_INGEST))
    counts = ((IngestConfig, ingest), (PipelineConfig, light), (ParsingConfig, light), (QueryConfig, _QUERY))
    reserved = sum(count * float(kind.model_fields["num_cpus"].default) for kind, count in counts)
    light_pods = max(_FLOOR, ceil(reserved / (_LIGHT_POD_CPUS * _LIGHT_SHARE)))
    pods = dict(zip(_GROUPS, (light_pods, generation, selection), strict=True))
    sizes = [replica_cpus] * generation + [_LIGHT_POD_CPUS] * light_pods + [_HEAD_CPUS] * (selection + 1)
    return Plan(
        generation=generation,
        selection=selection,
        ingest=ingest,
        pipeline=light,
        parsing=light,
        query=_QUERY,
        pods=pods,
        cpus=sum(sizes),
        # With a GPU a pod of generation, of which a node is taken to have `gpus`, else cores alone decide.
        nodes=max(_FLOOR, _packed(sizes, node_cpus), ceil(generation / gpus) if gpus else 0),
        partitions=max(12, 2 * ingest),
    )


def _packed(sizes: list[int], room: int) -> int:
    """Nodes that hold pods of so many cores: first fit, the largest first."""
    free: list[int] = []
    place = last = 0
    for size in sorted(sizes, reverse=True):
        if size != last:  # what had no room for a larger one may have some for this
            place, last = 0, size
        while place < len(free) and free[place] < size:
            place += 1
        if place == len(free):
            free.append(room)
        free[place] -= size
    return len(free)


def settings(made: Plan, replica_cpus: int, gpus: int) -> dict[str, str]:
    """The settings of an overlay; the floors are those of the base."""
    found = {f"BIOBRACKET_{name}_MAX_REPLICAS": getattr(made, name.lower()) for name in (
        "QUERY", "INGEST", "PIPELINE", "PARSING", "GENERATION", "SELECTION"
    )}  # fmt: skip
    found |= {"BIOBRACKET_GENERATION_NUM_CPUS": replica_cpus, "BIOBRACKET_SELECTION_NUM_CPUS": 1}
    if gpus:
        found["BIOBRACKET_GENERATION_NUM_GPUS"] = 1
    return {name: str(value) for name, value in found.items()}


def patch(made: Plan) -> list[dict[str, object]]:
    """The most pods of each worker group, as a JSON patch of the RayService."""
    where = "/spec/rayClusterConfig/workerGroupSpecs"
    return [
        {"op": "replace", "path": f"{where}/{n}/maxReplicas", "value": made.pods[name]}
        for n, name in enumerate(_GROUPS)
    ]


def show_plan(
    documents_per_day: Annotated[int, typer.Option(min=1, help="Documents that come in on a day.")],
    segments_per_second: Annotated[
        float, typer.Option(min=0.001, help="Of one replica of generation, as `make bench` measured it on such a node.")
    ],
    segments_per_document: Annotated[float, typer.Option(min=1, help="Segments of a document, on average.")] = 8.0,
    cached: Annotated[float, typer.Option(min=0, max=0.999, help="Share of segments that come from the cache.")] = 0.0,
    peak: Annotated[float, typer.Option(min=1, help="The busiest hour's rate over the day's mean.")] = 2.0,
    utilisation: Annotated[
        float, typer.Option(min=0.1, max=1, help="Share of its rate that a replica is given.")
    ] = 0.7,
    cpus: Annotated[int, typer.Option(min=1, help="Cores of a replica of generation.")] = 4,
    node_cpus: Annotated[int, typer.Option(min=2, help="Cores of a node.")] = 16,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of a node, one for a replica of generation; 0: none.")] = 0,
    overlay: Annotated[
        Path | None, typer.Option(help="Folder of an overlay whose plan.env and plan.yaml are written.")
    ] = None,
) -> None:
    """Choose replicas, pods and nodes for so many documents a day."""
    load = Load(documents_per_day, segments_per_document, cached, peak)
    try:
        made = plan(
            load,
            per_replica=segments_per_second,
            utilisation=utilisation,
            replica_cpus=cpus,
            node_cpus=node_cpus,
            gpus=gpus,
        )
    except ValueError as error:
        fail(str(error))
    out.print(f"segments a second at the peak: {load.segments_per_second:.1f}", highlight=False)
    for name in ("generation", "selection", "ingest", "pipeline", "parsing", "query"):
        out.print(f"replicas of {name}: {getattr(made, name)}", highlight=False)
    for name, count in made.pods.items():
        out.print(f"pods of {name}: {count}", highlight=False)
    out.print(f"cores: {made.cpus}, nodes of {node_cpus}: {made.nodes}", highlight=False)
    out.print(f"partitions of documents: at least {made.partitions}", highlight=False)
    if overlay is not None:
        _write(overlay, made, cpus, gpus)


def _write(overlay: Path, made: Plan, cpus: int, gpus: int) -> None:
    head = "# Written by `biobracket plan`.\n"
    lines = [f"{name}={value}\n" for name, value in settings(made, cpus, gpus).items()]
    patches = [f"- {json.dumps(each)}\n" for each in patch(made)]
    try:
        for name, text in (("plan.env", lines), ("plan.yaml", patches)):
            (overlay / name).write_text(head + "".join(text), encoding="utf-8")
            out.print(str(overlay / name), highlight=False, soft_wrap=True)
    except OSError as error:
        fail(f"overlay: {overlay} cannot be written ({error.strerror}); name a folder such as k8s/overlays/cpu")
