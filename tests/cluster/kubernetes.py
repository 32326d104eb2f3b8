"""A Kubernetes cluster with KubeRay, by `kubectl`: that of `make cluster`, or whichever KUBECONFIG names."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("CLUSTER_DIR") or Path.home() / ".cache" / "biobracket-cluster")
HOST = os.environ.get("CLUSTER_HOST", "10.89.0.1")
"""Where pods reach this machine."""

PATIENCE_S = 900.0

Manifest = dict[str, Any]


class Missing(Exception):
    """There is no cluster; the message says how to get one."""


class Cluster:
    """What the tests do with a cluster, in one namespace."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        own = FOLDER / "pki" / "admin.kubeconfig"
        self._env = dict(os.environ)
        if "KUBECONFIG" not in os.environ:
            if not (FOLDER / "run" / "started").exists():
                raise Missing("no cluster: run `make cluster`, or let KUBECONFIG name one that has KubeRay")
            self._env["KUBECONFIG"] = str(own)

    def kubectl(self, *arguments: str, sent: str | None = None, timeout_s: float = 300.0) -> str:
        """What it prints; AssertionError with what it complains of."""
        done = subprocess.run(
            ["kubectl", *arguments], env=self._env, input=sent, capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr[-2000:]}"
        return done.stdout

    def own(self, *arguments: str, **options: Any) -> str:
        """As :meth:`kubectl`, in the namespace."""
        return self.kubectl("-n", self.namespace, *arguments, **options)

    def apply(self, manifests: Iterable[Manifest]) -> None:
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", sent=_as_list(manifests))

    def apply_folder(self, folder: Path) -> None:
        self.kubectl("apply", "-k", str(folder))

    def get(self, *what: str) -> Manifest:
        """A resource of the namespace; empty where there is none."""
        found: Manifest = json.loads(self.own("get", *what, "--ignore-not-found", "-o", "json") or "{}")
        return found

    def pods(self, **labels: str) -> list[Manifest]:
        """Those that run and are not being ended, by labels of Ray (`group="light"` for `ray.io/group`)."""
        selector = ",".join(f"ray.io/{name.replace('_', '-')}={value}" for name, value in labels.items())
        items: list[Manifest] = self.get("pods", "-l", selector).get("items", [])
        return [
            pod
            for pod in items
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]

    def ready_pods(self, **labels: str) -> list[Manifest]:
        return [pod for pod in self.pods(**labels) if _has(pod, "Ready")]

    def service_ready(self, name: str) -> bool:
        return _has(self.get("rayservice", name), "Ready")

    def until(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE_S) -> float:
        """Waits; how long it took. What the API server does not answer meanwhile is asked again."""
        start = time.monotonic()
        while True:
            with suppress(AssertionError, subprocess.TimeoutExpired):
                if condition():
                    return time.monotonic() - start
            assert time.monotonic() - start < seconds, f"not within {seconds:.0f} s: {what}\n{self.told()}"
            time.sleep(3)

    def told(self) -> str:
        """Pods and what happened last."""
        with suppress(AssertionError, subprocess.TimeoutExpired):
            events = self.own("get", "events", "--sort-by=.lastTimestamp").splitlines()[-25:]
            return self.own("get", "rayservice,raycluster,pods", "-o", "wide") + "\n".join(events)
        return "the API server does not answer"

    def inside(self, pod: str, *command: str, namespace: str = "") -> bool:
        """Whether a command in a pod succeeds."""
        done = subprocess.run(
            ["kubectl", "-n", namespace or self.namespace, "exec", pod, "--", *command],
            env=self._env, capture_output=True, timeout=120,
        )  # fmt: skip
        return done.returncode == 0

    def kill_operator(self) -> None:
        """SIGKILL, and again after some seconds: a process of `make cluster`, else the pods of its Deployment."""
        file = FOLDER / "run" / "ray-operator.pid"
        if "KUBECONFIG" in os.environ:
            selector = "app.kubernetes.io/name=kuberay-operator"
            self.kubectl("delete", "pods", "-A", "-l", selector, "--grace-period=0", "--force")
            return
        process = psutil.Process(int(file.read_text()))
        command, env = process.cmdline(), process.environ()
        process.kill()
        process.wait(30)
        time.sleep(10)
        with (FOLDER / "logs" / "ray-operator.log").open("ab") as log:
            again = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        file.write_text(str(again.pid))


def _has(manifest: Manifest, condition: str) -> bool:
    conditions = manifest.get("status", {}).get("conditions", [])
    return any(each["type"] == condition and each["status"] == "True" for each in conditions)


def _as_list(manifests: Iterable[Manifest]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
