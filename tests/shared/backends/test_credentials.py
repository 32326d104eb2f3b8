from __future__ import annotations

from pathlib import Path

import pytest

from shared.backends.credentials import client_context, secret
from shared.errors import StoreError
from tests.support.certificates import Authority, pem


def test_a_secret_is_the_line_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(" zq17 字\r\n", encoding="utf-8")
    assert secret(file, "BIOBRACKET_X", StoreError) == " zq17 字"


@pytest.mark.parametrize("content", [b"", b"\n", b"zq17\nmore\n", b"\xffzq17"])
def test_a_file_without_a_secret_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"^BIOBRACKET_X: ") as failed:
        secret(file, "BIOBRACKET_X", StoreError)
    assert "zq17" not in str(failed.value)
    with pytest.raises(StoreError, match="cannot be read"):
        secret(tmp_path / "none", "BIOBRACKET_X", StoreError)


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = map(str, authority.issue())
    client_context("BIOBRACKET_X", (str(authority.file), certificate, key), StoreError)
    with pytest.raises(StoreError, match=r"^BIOBRACKET_X_CA: "):
        client_context("BIOBRACKET_X", (key, None, None), StoreError)
    with pytest.raises(StoreError, match=r"^BIOBRACKET_X_CERTIFICATE: "):
        client_context("BIOBRACKET_X", (None, certificate, str(authority.issue("other")[1])), StoreError)
    Path(key).write_bytes(pem(authority._key, b"zq17"))
    with pytest.raises(StoreError, match="without a password"):
        client_context("BIOBRACKET_X", (None, certificate, key), StoreError)
