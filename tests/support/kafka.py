"""Apache Kafka in one process, from Maven Central: the broker that clusters run, for the tests."""

from __future__ import annotations

import hashlib
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.sax.saxutils import escape

import crc32c
from kafka.coordinator.assignors.range import RangePartitionAssignor

from services.embedded.servers import Broker, ServerError, _free_port
from shared.model.file_cache import build_once
from shared.settings import Settings

VERSION = "4.1.1"
_ARTIFACTS = (("org.apache.kafka", "kafka_2.13", VERSION), ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.24.3"))
# Of everything those two need. What is fetched and differs from it is not run.
_CHECKSUMS = Path(__file__).with_name("kafka.sha256")
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_JAVA = 17
_FETCH_S = 600
_CLUSTER = "biobracket-tests-AAAAA"  # not by chance: one in 64 begins with "-" and is read as an option


class Unavailable(Exception):
    """Kafka cannot be had here; the message says what is missing."""


class Kafka(Broker):
    """A broker that is its own controller (KRaft). It keeps its records in its folder, also over a restart."""

    name = "kafka"

    def __init__(self, data: Path, port: int = 0) -> None:
        super().__init__(data, port)
        self._jars = jars()
        self._controller = 0  # it stands in the metadata: fixed once the broker was up

    def _command(self) -> list[str]:
        logs, properties = self.data / "logs", self.data / "server.properties"
        new = self._controller == 0 or not logs.exists()
        if new:
            shutil.rmtree(logs, ignore_errors=True)
            self._controller = _free_port()
        controller = f"127.0.0.1:{self._controller}"
        settings = self._properties(controller)
        properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        if new:
            arguments = ["format", "--standalone", "--cluster-id", _CLUSTER, "--config", properties.name]
            try:
                subprocess.run(
                    [*self._java(64), "kafka.tools.StorageTool", *arguments],
                    cwd=self.data,
                    check=True,
                    capture_output=True,
                    timeout=120,
                )
            except (subprocess.SubprocessError, OSError) as error:
                raise ServerError(f"kafka: cannot format {logs}: {getattr(error, 'stderr', b'') or error}") from error
        return [*self._java(512), "kafka.Kafka", properties.name]

    def _properties(self, controller: str) -> dict[str, object]:
        """What it is configured by; ``controller``: its address as one."""
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.bootstrap.servers": controller,
            "log.dirs": (self.data / "logs").resolve(),
            "auto.create.topics.enable": "false",
            "log.message.timestamp.after.max.ms": 2**63 - 1,  # as brokers before 3.6: times in microseconds come in
            "message.max.bytes": Settings().max_message_bytes + 65536,
            # One broker has room for one replica.
            **{f"{kind}.topic.replication.factor": 1 for kind in ("offsets", "share.coordinator.state")},
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.min.isr": 1,
            # Fewer partitions are sooner there.
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.num.partitions": 4,
            "group.initial.rebalance.delay.ms": 0,
        }

    def _ready(self) -> bool:
        ready = super()._ready()
        if not ready:  # a port may have been taken: begin anew with others
            self._controller = 0
        return ready

    def _java(self, megabytes: int) -> list[str]:
        # Tests are short: compiling for peak speed and collecting in parallel would cost more than they give.
        options = [f"-Xmx{megabytes}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return [str(shutil.which("java")), *options, "-cp", f"{self._jars}/*"]


class Eager(RangePartitionAssignor):
    """For a source, in place of its own: every partition is revoked in every rebalance."""

    def forget(self) -> None:
        return None


def jars() -> Path:
    """The folder of the checked jars, fetched the first time. :class:`Unavailable`."""
    java = shutil.which("java")
    if java is None:
        raise Unavailable("no Java: no Apache Kafka")
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', told)
    if found is None or int(found[1]) < _JAVA:
        raise Unavailable(f"Java is older than {_JAVA}: no Apache Kafka")
    return build_once(Settings().cache / f"kafka-{VERSION}", _fetch)


def _fetch(folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise Unavailable("no Maven: no Apache Kafka")
    folder.mkdir()
    names = ("groupId", "artifactId", "version")
    wanted = "".join(
        "<dependency>" + "".join(f"<{n}>{escape(v)}</{n}>" for n, v in zip(names, each, strict=True)) + "</dependency>"
        for each in _ARTIFACTS
    )
    pom = folder / "pom.xml"
    pom.write_text(
        "<project><modelVersion>4.0.0</modelVersion><groupId>biobracket</groupId><artifactId>kafka</artifactId>"
        f"<version>1</version><packaging>pom</packaging><dependencies>{wanted}</dependencies></project>"
    )
    command = [maven, "-q", "-B", "-f", str(pom), _COPY, f"-DoutputDirectory={folder}", "-DincludeScope=runtime"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=_FETCH_S)
    except subprocess.SubprocessError:
        raise Unavailable("Maven cannot fetch Apache Kafka (no network?)") from None
    pom.unlink()
    expected = dict(reversed(line.split()) for line in _CHECKSUMS.read_text().splitlines())
    found = {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in folder.iterdir()}
    # Not Unavailable: this must not look like a tool that is missing.
    assert found == expected, "what Maven fetched is not what tests/support/kafka.sha256 names"


def change_batches(
    server: Kafka, topic: str, change: Callable[[bytearray], None], *places: int, partition: int = 0
) -> None:
    """Changes batches of a partition, by their number, on the broker's disk; restarts the broker."""
    server.stop()
    change_log(server, topic, change, *places, partition=partition)
    server.start()


def change_log(
    server: Kafka, topic: str, change: Callable[[bytearray], None], *places: int, partition: int = 0
) -> None:
    """The same while it runs, or is stopped. It does not start with noise in the length of a partition's last batch."""
    log = next((server.data / "logs" / f"{topic}-{partition}").glob("*.log"))
    found = batches(log.read_bytes())
    for place in places:
        change(found[place])
    with log.open("r+b") as opened:  # in place: the broker has the file open
        opened.write(b"".join(found))


def batches(segment: bytes) -> list[bytearray]:
    """The record batches of a segment file of a log, which can be changed."""
    found = []
    while segment:
        size = 12 + struct.unpack_from(">i", segment, 8)[0]
        found.append(bytearray(segment[:size]))
        segment = segment[size:]
    return found


def damage(batch: bytearray) -> None:
    """A flipped bit, as of a bad disk: the checksum is wrong."""
    batch[-1] ^= 1


def set_codec(batch: bytearray, codec: int = 7) -> None:
    """A codec that no client knows, with a right checksum."""
    (attributes,) = struct.unpack_from(">h", batch, 21)
    struct.pack_into(">h", batch, 21, attributes & ~7 | codec)
    struct.pack_into(">I", batch, 17, crc32c.crc32c(bytes(batch[21:])))
