from ray._private import services

from shared.runtime.ray_node import LOOPBACK, on_loopback


def test_a_loopback_address_stays_one(monkeypatch):
    # Noted, so that what is changed below is undone.
    monkeypatch.setattr(services, "resolve_ip_for_localhost", services.resolve_ip_for_localhost)
    given = on_loopback()
    assert given["address"] == "local"
    assert services.resolve_ip_for_localhost(given["_node_ip_address"]) == LOOPBACK
