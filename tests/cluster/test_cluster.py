"""`make k8s-test`: the manifests on a cluster with KubeRay, and each of its parts broken in turn.

The tests are one story, in the order of the file: the cluster that one leaves is the next one's. Each row of the table
that is printed at the end says what became of documents and calls while something happened.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from services.ingest.admission import admit
from shared.backends.result_store import ResultStore
from shared.messages import Document, Extraction, check_offsets
from tests.cluster import overlay
from tests.cluster.deployed import Deployed, Row, deployed
from tests.cluster.kubernetes import PATIENCE_S, Manifest
from tests.cluster.models import ADAPTERS
from tests.faults.verdict import judge
from tests.faults.workload import Expected, Producer
from tests.support.manifests import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3600)]

# Enough to keep a replica of generation busy until another is there.
BACKLOG = 4000
COMPARED = 12
# A text that the two adapters read differently.
DIFFERS = Document(
    id="differs", text=" ".join(f"CD{n} binds protein {n}." for n in range(40)), lang="en", types=("protein",)
)
DASHBOARD = ("/api/version", "/api/serve/applications/", "/api/jobs/", "/nodes?view=summary")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    with deployed(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def notes() -> list[Document]:
    lines = (ROOT / "examples" / "notes.jsonl").read_bytes().splitlines()
    return [admit(line) for line in lines if line.strip()]


def test_the_overlay_ends_with_entities_of_the_sample_notes(system: Deployed) -> None:
    """With the real model, on two cores."""
    start = time.monotonic()
    system.cluster.apply_folder(overlay.OVERLAY)
    system.cluster.until(system.ready, "the RayService is ready")
    ready_s = time.monotonic() - start
    sent = notes()
    with closing(Producer(system.settings, system.everything)) as producer:
        for note in sent:
            producer.send(note)
        producer.settle()
    system.drained()
    seconds = time.monotonic() - start
    with closing(ResultStore.from_settings(system.settings)) as store:
        for note in sent:
            found = store.get(note.id)
            assert found is not None, note.id
            assert found.entities, note.id
            assert all(check_offsets(note.text, entity) for entity in found.entities), note.id
    print(f"\nready after {ready_s:.0f} s, {len(sent)} notes in Redis after {seconds:.0f} s")


def test_the_tiny_model_takes_over(system: Deployed) -> None:
    system.use(ADAPTERS[0])
    system.cluster.until(lambda: len(system.clusters()) == 2, "a new Ray cluster beside the old one")
    system.settled()
    system.recovered()
    assert len(system.clusters()) == 1


@pytest.mark.parametrize("path", DASHBOARD)
def test_without_the_token_the_dashboard_and_the_job_server_say_401(system: Deployed, path: str) -> None:
    address = f"http://{system.head()['status']['podIP']}:8265"
    assert httpx.get(address + path, timeout=30).status_code == 401
    secret = system.cluster.get("secret", "biobracket-ray")["data"]["auth_token"]
    token = base64.b64decode(secret).decode()
    assert httpx.get(address + path, headers={"Authorization": f"Bearer {token}"}, timeout=30).status_code == 200
    assert httpx.get(address + path, headers={"Authorization": f"Bearer {token}x"}, timeout=30).status_code >= 401


def test_without_the_token_no_job_is_taken(system: Deployed) -> None:
    address = f"http://{system.head()['status']['podIP']}:8265/api/jobs/"
    assert httpx.post(address, json={"entrypoint": "id"}, timeout=30).status_code == 401


def caller(name: str, namespace: str, labels: dict[str, str]) -> Manifest:
    confined = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "caller",
                    "image": "localhost/biobracket:test",
                    "command": ["sleep", "100000"],
                    "securityContext": confined,
                }
            ],
        },
    }


def test_policies_refuse_who_may_not_ask(system: Deployed) -> None:
    """Clients reach Serve, in any namespace, and nothing else; others nothing at all."""
    cluster, elsewhere = system.cluster, "biobracket-callers"
    cluster.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": elsewhere}}])
    try:
        client, outside = {"biobracket.io/client": "true"}, overlay.NAMESPACE
        cluster.apply(
            [caller("client", elsewhere, client), caller("stranger", elsewhere, {}), caller("stranger", outside, {})]
        )
        for namespace, name in ((elsewhere, "client"), (elsewhere, "stranger"), (outside, "stranger")):
            cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=300s")
        head = system.head()["status"]["podIP"]
        serve = f"http://{overlay.NAME}-serve-svc.{overlay.NAMESPACE}:8000/healthz"
        redis = cluster.get("service", "biobracket-gcs")["spec"]["clusterIP"]

        def reaches(namespace: str, name: str, host: str, port: int) -> bool:
            probe = f"import socket; socket.create_connection(('{host}', {port}), 5)"
            return cluster.inside(name, "python", "-c", probe, namespace=namespace)

        def asks(namespace: str, name: str) -> bool:
            return cluster.inside(name, "wget", "-q", "-T", "5", "-t", "1", "-O", "-", serve, namespace=namespace)

        cluster.until(lambda: asks(elsewhere, "client"), "a client reaches Serve", 120)
        for namespace in (elsewhere, outside):
            assert not asks(namespace, "stranger"), namespace
        for namespace, name in ((elsewhere, "client"), (elsewhere, "stranger"), (outside, "stranger")):
            for host, port in ((head, 8265), (head, 6379), (head, 10001), (redis, 6379)):
                assert not reaches(namespace, name, host, port), (namespace, name, port)
    finally:
        cluster.kubectl("delete", "namespace", elsewhere, "--wait=false")
        cluster.own("delete", "pod", "stranger", "--ignore-not-found", "--wait=false")


def test_ray_is_in_no_service_that_leaves_the_cluster(system: Deployed) -> None:
    services = system.cluster.get("services")["items"]
    assert services
    assert {each["spec"]["type"] for each in services} == {"ClusterIP"}


def test_load_brings_a_worker(system: Deployed) -> None:
    """A backlog makes Serve ask for a second replica, and that the operator for a pod; see the last but one test."""
    cluster, expected = system.cluster, Expected()
    assert len(cluster.pods(group="generation")) == 1
    with closing(Producer(system.settings, expected)) as producer:
        for n in range(BACKLOG):
            text = " ".join(f"CD{n * 7 + i} binds protein {i} of patient {n}." for i in range(12))
            producer.send(Document(id=f"backlog-{n}", text=text, lang="en", types=("protein",)))
        producer.settle()
    seconds = cluster.until(lambda: len(cluster.ready_pods(group="generation")) == 2, "a second pod of generation")
    print(f"\na second pod of generation was ready {seconds:.0f} s after the load began")
    system.drained()
    system.everything.last |= expected.last
    verdict = judge(system.settings, expected.last, system.everything.last)
    assert verdict.right, verdict
    assert verdict.dead == 0


def test_the_operator_is_killed(system: Deployed) -> None:
    row, _ = system.proof("operator killed, back after 10 s", system.cluster.kill_operator)
    assert row.calls is not None
    assert not row.calls.errors


def kill(system: Deployed, **labels: str) -> None:
    """Ends a pod without a warning, and waits until another is ready in its place."""
    cluster = system.cluster
    before = {pod["metadata"]["uid"] for pod in cluster.pods(**labels)}
    name = cluster.pods(**labels)[0]["metadata"]["name"]
    cluster.own("delete", "pod", name, "--grace-period=0", "--force")

    def replaced() -> bool:
        ready = {pod["metadata"]["uid"] for pod in cluster.ready_pods(**labels)}
        return len(ready) >= len(before) and bool(ready - before)

    cluster.until(replaced, f"another pod of {labels}")


@pytest.mark.parametrize("group", ["light", "selection"])
def test_a_worker_is_killed(system: Deployed, group: str) -> None:
    system.proof(f"worker of {group} killed", lambda: kill(system, group=group))


def test_idleness_takes_the_worker_away(system: Deployed) -> None:
    cluster = system.cluster
    cluster.until(lambda: len(cluster.pods(group="generation")) == 1, "one pod of generation again", 2 * PATIENCE_S)
    assert len(cluster.ready_pods(group="generation")) == 1


def test_generation_is_killed(system: Deployed) -> None:
    system.proof("worker of generation killed", lambda: kill(system, group="generation"))


def test_the_head_is_killed(system: Deployed) -> None:
    system.proof("head killed", lambda: kill(system, node_type="head"))


def test_a_node_is_drained(system: Deployed) -> None:
    """The head's node: whatever is on it goes elsewhere."""
    cluster = system.cluster
    if len(json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]) < 2:
        pytest.fail("one node cannot be drained: make cluster NODES=2")
    node = system.head()["spec"]["nodeName"]

    def drain() -> None:
        cluster.kubectl(
            "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--force",
            "--pod-selector=app.kubernetes.io/created-by=kuberay-operator", "--timeout=600s", timeout_s=660,
        )  # fmt: skip
        cluster.until(system.ready, "the service is ready again")

    try:
        system.proof("node of the head drained", drain)
    finally:
        cluster.kubectl("uncordon", node)


def upgraded(system: Deployed, name: str, adapter: str) -> tuple[Row, Expected]:
    def upgrade() -> None:
        before = system.clusters()
        system.use(adapter)
        system.cluster.until(lambda: bool(set(system.clusters()) - set(before)), "a new Ray cluster")
        system.settled()

    return system.proof(name, upgrade)


@pytest.mark.parametrize(("adapter", "name"), [(1, "upgrade to another adapter"), (0, "and back")])
def test_an_upgrade(system: Deployed, adapter: int, name: str) -> None:
    earlier = system.extract(DIFFERS)
    row, expected = upgraded(system, name, ADAPTERS[adapter])
    later = system.extract(DIFFERS)
    old, new = earlier.model_revision, later.model_revision
    assert old != new
    assert earlier.entities != later.entities, "else the comparison below could not fail"
    assert row.calls is not None
    assert not row.calls.errors
    assert row.calls.answered.keys() == {old, new}
    found = system.published(expected.last)
    assert {each.model_revision for each in found} == {old, new}
    # In the order of each partition: no result of the old one after the new one has begun.
    places: dict[int, list[tuple[int, str]]] = {}
    for each in found:
        assert each.source is not None
        places.setdefault(each.source.partition, []).append((each.source.offset, each.model_revision))
    for records in places.values():
        revisions = [revision for _, revision in sorted(records)]
        assert revisions == sorted(revisions, key=[old, new].index)
    compare(system, expected, [each for each in found if each.model_revision == new])


def compare(system: Deployed, expected: Expected, results: list[Extraction]) -> None:
    """Results that came out during the upgrade are those of the cluster that names itself in them, computed anew."""
    system.forget_lines()
    texts = {document.sha256: document for document in expected.last.values()}
    compared = [each for each in results if each.text_sha256 in texts][:COMPARED]
    assert compared
    for each in compared:
        again = system.extract(texts[each.text_sha256])
        assert again.model_revision == each.model_revision
        assert again.entities == each.entities


def test_what_was_rendered_is_what_the_server_takes(system: Deployed) -> None:
    """The API server's own strict validation, of the overlays whose kinds it knows."""
    told = system.cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "-k", str(overlay.OVERLAY))
    assert f"rayservice.ray.io/{overlay.NAME} " in told
