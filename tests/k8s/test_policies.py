"""Who may reach whom, and what a drain leaves."""

from __future__ import annotations

from tests.support.manifests import Manifest, cluster, manifests, one

PLACE = "overlays/cpu"


def policies() -> list[Manifest]:
    return [each for each in manifests(PLACE) if each["kind"] == "NetworkPolicy"]


def test_what_nobody_opened_is_shut() -> None:
    (deny,) = [each["spec"] for each in policies() if each["spec"]["podSelector"] == {}
               and not {"ingress", "egress"} & each["spec"].keys()]  # fmt: skip
    assert set(deny["policyTypes"]) == {"Ingress", "Egress"}


def test_clients_reach_serve_and_nothing_else() -> None:
    """The dashboard's and the job server's ports are open to Ray itself and to the operator, with the token."""
    rules = [rule for each in policies() for rule in each["spec"].get("ingress", ())]
    for rule in rules:
        ports = {port["port"] for port in rule.get("ports", ())}
        labels = [label for peer in rule["from"] for label in peer["podSelector"]["matchLabels"].values()]
        if not ports or ports & {8265, 10001, 52365}:
            assert labels == ["kuberay-operator"]
        if "true" in labels:
            assert ports == {8000}


def test_each_group_has_a_budget_that_a_drain_can_meet() -> None:
    budgets = {
        each["spec"]["selector"]["matchLabels"]["ray.io/group"]: each["spec"]["minAvailable"]
        for each in manifests(PLACE)
        if each["kind"] == "PodDisruptionBudget"
    }
    groups = {group["groupName"]: group for group in cluster(one(PLACE, "RayService"))["workerGroupSpecs"]}
    assert budgets.keys() == groups.keys()
    assert all(budgets[name] < group["minReplicas"] for name, group in groups.items())


def test_workers_of_a_group_are_spread() -> None:
    for group in cluster(one(PLACE, "RayService"))["workerGroupSpecs"]:
        keys = {each["topologyKey"] for each in group["template"]["spec"]["topologySpreadConstraints"]}
        assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
