from __future__ import annotations

from tests.support.http import World


def test_health(world: World) -> None:
    assert world.client.get("/healthz").json() == {"status": "alive"}
    assert world.client.get("/readyz").json() == {"status": "ready"}
    world.missing = ("store: does not answer; check BIOBRACKET_REDIS",)
    response = world.client.get("/readyz")
    assert response.status_code == 503
    assert response.json() == {"status": "not ready", "missing": list(world.missing)}
    assert world.client.get("/healthz").status_code == 200
