"""What each service may do on Kafka and Redis, and no more.

The one statement of it: `biobracket access` prints it for the servers, docs/security.md shows it, and the tests' users
have just these rules. The names are those of the setting ``service``; ``producer`` and ``reader`` are programs of
others, which send documents and read results.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from shared.settings import Settings

SERVICES = ("ingest", "pipeline", "query", "selection", "operator", "producer", "reader")

Operation = Literal["Read", "Write", "Describe", "DescribeConfigs"]
GROUP = "group"


@dataclass(frozen=True, slots=True)
class KafkaRule:
    """Operations on a topic, by its setting, or on the group of ingest. Read and Write include Describe."""

    resource: str
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class RedisRule:
    """Commands, and patterns of keys to read, to write, or both (`R`, `W`, `RW`)."""

    keys: tuple[tuple[Literal["R", "W", "RW"], str], ...]
    commands: tuple[str, ...]


KAFKA: dict[str, tuple[KafkaRule, ...]] = {
    "ingest": (
        KafkaRule("topic_documents", ("Read",)),
        KafkaRule("topic_feedback", ("Read",)),
        KafkaRule("topic_entities", ("Write",)),
        KafkaRule("topic_dead_letters", ("Write",)),
        KafkaRule(GROUP, ("Read",)),
    ),
    # An erasure is a record on the topic of documents.
    "query": (KafkaRule("topic_documents", ("Write",)),),
    "operator": (
        KafkaRule("topic_documents", ("Read", "Write", "DescribeConfigs")),
        KafkaRule("topic_feedback", ("Write", "DescribeConfigs")),
        KafkaRule("topic_entities", ("Read",)),
        KafkaRule("topic_dead_letters", ("Read", "Write", "DescribeConfigs")),
        KafkaRule(GROUP, ("Describe",)),
    ),
    "producer": (KafkaRule("topic_documents", ("Write",)),),
    # And Read on a group of its own.
    "reader": (KafkaRule("topic_entities", ("Read",)),),
}

_CONNECT = ("ping", "command", "cluster|slots", "cluster|shards", "readonly")
_SCRIPTS = ("evalsha", "script|load")
ERASE = (
    "del", "expire", "get", "hdel", "hget", "hincrby", "hmget", "hset", "incr", "incrby", "persist", "sadd", "set",
    "smembers", "srem", "unlink", "zadd", "zrangebyscore", "zrem",
)  # fmt: skip
_RESULTS = (("RW", "bb:{??}:*"), ("RW", "bb:m:{*"))
_FEEDBACK = (("RW", "bb:{feedback}:*"),)
# By which keys names are made and values sealed: noted by who may look at values, read by the others.
_NOTED = (("RW", "bb:keys"),)
_NOTE = (("R", "bb:keys"),)
_LOOK = ("scan", "hscan")
_REMOVALS = (("W", "bb:s:{*"), ("RW", "bb:{erasures}:n"))
# Of the group, where several deployments share it.
_LEASE = ("time", "zrange", "zremrangebyrank", "zscore")

REDIS: dict[str, RedisRule] = {
    "ingest": RedisRule(
        (*_RESULTS, *_FEEDBACK, *_REMOVALS, *_NOTED, ("RW", "bb:halt:*"), ("RW", "bb:lease:{*")),  # type: ignore[arg-type]
        (*_CONNECT, *_SCRIPTS, *ERASE, *_LOOK, *_LEASE, "config|get", "zremrangebyscore"),
    ),
    "pipeline": RedisRule(
        (
            *(("RW", "bb:s:{*"), ("RW", "bb:{??}:s:*")),
            *(("R", "bb:{erasures}:n"), ("R", "bb:{feedback}:version"), *_NOTE),
        ),  # type: ignore[arg-type]
        (*_CONNECT, "expire", "get", "sadd", "set"),
    ),
    "query": RedisRule(
        (*_RESULTS, *_FEEDBACK, *_REMOVALS, *_NOTE),  # type: ignore[arg-type]
        (*_CONNECT, *_SCRIPTS, *ERASE, "zrevrange", "zrevrangebyscore"),
    ),
    "selection": RedisRule(
        (("R", "bb:{feedback}:*"), *_NOTE),  # type: ignore[arg-type]
        (*_CONNECT, "get", "hmget", "zrangebyscore"),
    ),
    "operator": RedisRule(
        (*_RESULTS, *_FEEDBACK, ("RW", "bb:s:{*"), ("RW", "bb:{erasures}:n"), *_NOTED, ("RW", "bb:halt:*")),  # type: ignore[arg-type]
        # `encryption rotate` swaps by `eval`.
        (*_CONNECT, *_SCRIPTS, *ERASE, *_LOOK, "eval", "zremrangebyscore"),
    ),
}


def kafka_rules(settings: Settings, group: str, service: str) -> list[tuple[str, str, Operation]]:
    """Kind of the resource (`topic`, `group`), its name, and operation, of each rule."""
    return [
        ("group", group, operation)
        if rule.resource == GROUP
        else ("topic", getattr(settings, rule.resource), operation)
        for rule in KAFKA.get(service, ())
        for operation in rule.operations
    ]


def kafka_commands(settings: Settings, group: str, service: str) -> list[str]:
    """Arguments of kafka-acls.sh that give a service its rules; its user is ``kafka_user``."""
    principal = f"User:{_user(settings.kafka_user, service)}"
    return [
        f"--add --allow-principal {principal} --operation {operation} --{kind} {name}"
        for kind, name, operation in kafka_rules(settings, group, service)
    ]


def redis_line(settings: Settings, service: str) -> str:
    """The line of a service in an ACL file of Redis 7 or Valkey, without its password: add `>PASSWORD` or `#SHA256`."""
    found = re.match(r"\w+://([^:@/]+)(:[^@]*)?@", settings.redis.get_secret_value())
    user = _user(found[1] if found else "", service)
    return f"user {user} on {redis_rules(REDIS[service])}"


def redis_rules(*rules: RedisRule) -> str:
    """Rules of a user in the language of ACL SETUSER."""
    keys = dict.fromkeys(f"%{access}~{pattern}" for rule in rules for access, pattern in rule.keys)
    commands = dict.fromkeys(f"+{command}" for rule in rules for command in rule.commands)
    return " ".join(["resetkeys", "resetchannels", "-@all", *keys, *commands])


def as_markdown() -> str:
    """The tables of docs/security.md."""
    lines = ["| service | Kafka: topic or group | operations |", "|---|---|---|"]
    for service, rules in KAFKA.items():
        for rule in rules:
            name = "INGEST_GROUP" if rule.resource == GROUP else rule.resource.upper()
            lines.append(f"| {service} | `BIOBRACKET_{name}` | {', '.join(rule.operations)} |")
    lines += ["", "| service | Redis: keys | commands |", "|---|---|---|"]
    for service, rule_ in REDIS.items():
        keys = ", ".join(f"`%{access}~{pattern}`" for access, pattern in rule_.keys)
        lines.append(f"| {service} | {keys} | {', '.join(sorted(rule_.commands)).replace('|', '&#124;')} |")
    return "\n".join(lines) + "\n"


def _user(template: str, service: str) -> str:
    return template.replace("{service}", service) if "{service}" in template else f"biobracket-{service}"
