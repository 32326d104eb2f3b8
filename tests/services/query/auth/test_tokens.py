from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from services.query.auth.callers import Caller, Rejected
from services.query.auth.jwks import Key, Keys, public_keys
from services.query.auth.tokens import TokenVerifier
from tests.support.certificates import Issuer, encoded

ES, RS, ED = Issuer("es"), Issuer("rs", "RS256"), Issuer("ed", "EdDSA")
ALL = public_keys({"keys": [ES.jwk(), RS.jwk(), ED.jwk()]})


class Held:
    def __init__(self, keys: Keys) -> None:
        self.keys = keys

    async def find(self, kid: str) -> Key | None:
        return self.keys.get(kid)


def check(token: str, keys: Keys = ALL, **options: Any) -> Caller:
    given: Mapping[str, Any] = {
        "issuer": Issuer.name,
        "audience": Issuer.audience,
        "algorithms": ("RS256", "PS256", "ES256", "EdDSA"),
        "leeway_s": 5,
    }
    return asyncio.run(TokenVerifier(Held(keys), **{**given, **options}).check(token))


@pytest.mark.parametrize("issuer", [ES, RS, ED], ids=lambda issuer: issuer.algorithm)
def test_a_right_token(issuer: Issuer) -> None:
    assert check(issuer.token()) == Caller("jwt", "ward-3", frozenset({"read"}))


@pytest.mark.parametrize(
    ("claims", "scopes"),
    [
        ({"scope": "read extract other"}, {"read", "extract"}),
        ({"scope": None, "scp": ["feedback", 7]}, {"feedback"}),
        ({"scope": None, "scp": "admin read"}, {"admin", "read"}),
        ({"scope": None}, set()),
        ({"scope": ["read"]}, {"read"}),
        ({"scope": {"read": 1}}, set()),
        ({"scope": "", "scp": ["admin"]}, set()),
    ],
)
def test_scopes(claims: dict[str, Any], scopes: set[str]) -> None:
    assert check(ES.token(**claims)).scopes == scopes


PAST = datetime.now(UTC) - timedelta(seconds=60)


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"exp": PAST}, "expired_token"),
        ({"nbf": datetime.now(UTC) + timedelta(days=2)}, "invalid_token"),
        ({"iss": "https://other.example"}, "invalid_token"),
        ({"aud": "other"}, "invalid_token"),
        ({"sub": ""}, "token_subject"),
        ({"sub": 7}, "invalid_token"),
        *(({name: None}, "invalid_token") for name in ("exp", "iss", "aud", "sub")),
    ],
)
def test_a_claim_that_is_missing_or_wrong(claims: dict[str, Any], code: str) -> None:
    with pytest.raises(Rejected, match=code):
        check(ES.token(**claims))


def test_leeway() -> None:
    just_now = datetime.now(UTC) - timedelta(seconds=30)  # PAST is of when the tests were collected
    assert check(ES.token(exp=just_now), leeway_s=300)
    with pytest.raises(Rejected, match="expired_token"):
        check(ES.token(exp=just_now), leeway_s=5)


def public_pem(issuer: Issuer) -> bytes:
    return issuer.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def test_neither_no_signature_nor_one_by_the_public_key_is_accepted() -> None:
    claims = jwt.decode(ES.token(), options={"verify_signature": False})
    for algorithm in ("none", "None", "nOnE"):
        with pytest.raises(Rejected, match="token_algorithm"):
            check(f"{encoded({'alg': algorithm, 'kid': 'es'})}.{encoded(claims)}.")
    signed = f"{encoded({'alg': 'HS256', 'kid': 'rs'})}.{encoded(claims)}"
    mac = hmac.digest(public_pem(RS), signed.encode(), hashlib.sha256)
    forged = f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    with pytest.raises(Rejected, match="token_algorithm"):
        check(forged)
    with pytest.raises(Rejected, match="invalid_token"):  # even if the settings could name it
        check(forged, algorithms=("HS256",))


def test_a_key_counts_for_its_own_algorithm_alone() -> None:
    only = public_keys({"keys": [RS.jwk(alg="PS256")]})
    with pytest.raises(Rejected, match="token_key"):
        check(RS.token(), only)
    with pytest.raises(Rejected, match="token_algorithm"):
        check(RS.token(), algorithms=("ES256",))
    with pytest.raises(Rejected, match="invalid_token"):
        check(RS.token({"kid": "es"}))
    with pytest.raises(Rejected, match="token_key"):
        check(RS.token({"kid": "unknown"}))
    with pytest.raises(Rejected, match="token_without_kid"):
        check(jwt.encode({"sub": "a"}, ES.key, "ES256"))


def test_a_key_that_comes_with_the_token_is_not_looked_at() -> None:
    stranger = Issuer("es")
    for header in ({"jwk": stranger.jwk()}, {"jku": "https://stranger.example"}, {"x5c": ["AA"]}):
        with pytest.raises(Rejected, match="invalid_token"):
            check(stranger.token(header))


def test_a_short_key_is_refused() -> None:
    weak = Issuer("weak", "RS256")
    weak.key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    keys = public_keys({"keys": [weak.jwk()]})
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = weak.token()
    with pytest.raises(Rejected, match="invalid_token"):
        check(token, keys)


@given(
    st.text(max_size=40)
    | st.lists(st.binary(max_size=20).map(lambda b: base64.urlsafe_b64encode(b).decode()), max_size=4).map(".".join)
    | st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "b64"]),
        st.none() | st.integers() | st.sampled_from(["ES256", "es", "rs", "none"]) | st.lists(st.text(max_size=3)),
    ).map(lambda header: f"{encoded(header)}.{encoded({'sub': 'a'})}.AAAA")
    | st.just(base64.urlsafe_b64encode(b"[" * 9000).decode() + ".e30.AA")
)
def test_no_token_breaks_it(token: str) -> None:
    with pytest.raises(Rejected):
        check(token)


@given(st.integers(0, 10_000), st.sampled_from("Ab_9"))
def test_a_token_that_was_changed(place: int, letter: str) -> None:
    token = ES.token()
    place %= len(token)
    other = token[:place] + letter + token[place + 1 :]
    last = place in (token.rindex(".") - 1, token.index(".") - 1, len(token) - 1)  # bits that base64 leaves out
    if other == token or last:
        return
    with pytest.raises(Rejected):
        check(other)
    assert json.loads(base64.urlsafe_b64decode(token.split(".")[0] + "==="))["alg"] == "ES256"
