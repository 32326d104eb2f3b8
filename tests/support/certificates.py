"""Certificates and signing keys that a test makes for itself."""

from __future__ import annotations

import base64
import ipaddress
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
Files = tuple[Path, Path]
"""A certificate and its key, in PEM."""


def pem(key: PrivateKey, password: bytes | None = None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


class Authority:
    """A private CA; :attr:`file` is its certificate."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._signed(self._name, self._key.public_key(), None)
        self.file = folder / "ca.pem"
        self.file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str = "server", hosts: tuple[str, ...] = ("localhost", "127.0.0.1")) -> Files:
        """A new certificate for some hosts, in files ``NAME.pem`` and ``NAME.key``, which it replaces."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._signed(subject, key.public_key(), hosts)
        certificate, private = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        private.write_bytes(pem(key))
        return certificate, private

    def _signed(
        self, subject: x509.Name, public: ec.EllipticCurvePublicKey, hosts: tuple[str, ...] | None
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=hosts is None, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if hosts is None:
            usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        else:
            names = [_general_name(host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


class Issuer:
    """An issuer of JSON Web Tokens with one key."""

    name = "https://issuer.example"
    audience = "biobracket"

    def __init__(self, kid: str = "k1", algorithm: str = "ES256") -> None:
        self.kid = kid
        self.algorithm = algorithm
        self.key: PrivateKey = (
            ec.generate_private_key(ec.SECP256R1())
            if algorithm == "ES256"
            else ed25519.Ed25519PrivateKey.generate()
            if algorithm == "EdDSA"
            else rsa.generate_private_key(public_exponent=65537, key_size=2048)
        )

    def jwk(self, **others: Any) -> dict[str, Any]:
        """The public key as an entry of a JWKS."""
        made = jwt.get_algorithm_by_name(self.algorithm)
        return {**made.to_jwk(self.key.public_key(), as_dict=True), "kid": self.kid} | others  # type: ignore[attr-defined]

    def jwks(self, *others: dict[str, Any]) -> bytes:
        return json.dumps({"keys": [self.jwk(), *others]}).encode()

    def token(self, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """A token for ``ward-3`` with scope ``read``, valid for an hour; a claim of None is left out."""
        now = datetime.now(UTC)
        default = {
            "iss": self.name,
            "aud": self.audience,
            "sub": "ward-3",
            "exp": now + timedelta(hours=1),
            "scope": "openid read",
        }
        given = {name: value for name, value in (default | claims).items() if value is not None}
        return jwt.encode(given, self.key, self.algorithm, headers={"kid": self.kid} | (header or {}))


def encoded(part: Any) -> str:
    """A part of a token, as JSON in base64."""
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
