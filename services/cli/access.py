"""``biobracket access``: the rules that each service needs on Kafka and Redis, for their administrators."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.console import fail, load_settings

access = typer.Typer(help="What each service may do on Kafka and Redis: rules for their administrators.")

Service = Annotated[
    list[str] | None, typer.Option("--service", help="Only of this service; repeatable. Default: of each.")
]


@access.command()
def kafka(service: Service = None) -> None:
    """Print the arguments of kafka-acls.sh, a line a rule.

    Users are those of BIOBRACKET_KAFKA_USER, where it holds `{service}`, else `biobracket-SERVICE`.
    """
    from services.ingest.config import IngestConfig
    from shared.backends.access import KAFKA, kafka_commands

    settings, group = load_settings(), IngestConfig().group
    for name in _chosen(service, list(KAFKA)):
        for line in kafka_commands(settings, group, name):
            typer.echo(line)


@access.command()
def redis(service: Service = None) -> None:
    """Print lines of an ACL file of Redis 7 or Valkey, without passwords: add `>PASSWORD` or `#SHA256` to each.

    Users are those of BIOBRACKET_REDIS, where it holds `{service}`, else `biobracket-SERVICE`.
    """
    from shared.backends.access import REDIS, redis_line

    settings = load_settings()
    for name in _chosen(service, list(REDIS)):
        typer.echo(redis_line(settings, name))


def _chosen(given: list[str] | None, known: list[str]) -> list[str]:
    if unknown := sorted(set(given or ()) - set(known)):
        fail(f"service: there is no {', '.join(unknown)} here; choose of {', '.join(known)}")
    return given or known
