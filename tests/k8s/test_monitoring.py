"""Alarms and panels name metrics that there are."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from shared.runtime.metrics import METRICS
from tests.support.manifests import ROOT, one

PLACE = "overlays/cpu"


def rules() -> list[dict[str, Any]]:
    return [rule for group in one(PLACE, "PrometheusRule")["spec"]["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    (text,) = one(PLACE, "ConfigMap", "biobracket-dashboard")["data"].values()
    found: dict[str, Any] = json.loads(text)
    return found


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + [
        target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]
    ]


def exported() -> set[str]:
    """As Prometheus sees them."""
    names = set()
    for metric in METRICS:
        suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}[metric.kind]
        names |= {f"ray_{metric.name}{suffix}" for suffix in suffixes}
    return names


def of_serve() -> set[str]:
    """Counters of Serve's proxies, by the source: Ray has no list of them."""
    spec = importlib.util.find_spec("ray.serve._private.request_ingress_metrics")
    assert spec is not None
    assert spec.origin is not None
    found = re.findall(r'f"(serve_num_\{protocol_name\}\w+)"', Path(spec.origin).read_text())
    return {f"ray_{name.format(protocol_name='http')}_total" for name in found}


def test_every_metric_exists() -> None:
    assert of_serve()
    named = {name for each in expressions() for name in re.findall(r"\bray_(?!io_)\w+", each)}
    assert named <= exported() | of_serve()


def test_every_metric_of_ours_is_shown() -> None:
    text = " ".join(expressions())
    assert [metric.name for metric in METRICS if f"ray_{metric.name}" not in text] == []


def test_every_label_exists() -> None:
    """Of an expression with metrics of ours alone: the tags that it selects or groups by."""
    tags = {tag for metric in METRICS for tag in metric.tags} | {"le", "ray_io_cluster"}
    for each in expressions():
        if "ray_serve" not in each:
            used = re.findall(r"by \(([\w, ]+)\)", each) + re.findall(r"\{(\w+)=", each)
            assert {tag.strip() for part in used for tag in part.split(",")} <= tags, each


def test_every_alarm_is_explained() -> None:
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    named = re.findall(r"^\| `(Biobracket\w+)` \| .+ \| .+ \|$", text, re.MULTILINE)
    assert named == [rule["alert"] for rule in rules()]


def test_prometheus_finds_the_pods() -> None:
    (endpoint,) = one(PLACE, "PodMonitor")["spec"]["podMetricsEndpoints"]
    for group in one(PLACE, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        assert endpoint["port"] in {port["name"] for port in container["ports"]}
