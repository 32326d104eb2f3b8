import errno
import os
import tempfile
import threading
import time
from pathlib import Path

import pytest

from shared.model.file_cache import build_once

NOBODY = 65534


def write(path):
    path.write_text("made", encoding="utf-8")


def test_it_is_built_once(tmp_path):
    target = tmp_path / "cache" / "weights.bin"
    assert build_once(target, write) == target
    assert build_once(target, lambda _: pytest.fail("made again")) == target
    assert target.read_text() == "made"


def test_a_folder(tmp_path):
    def make(path):
        path.mkdir()
        write(path / "config.json")

    assert (build_once(tmp_path / "model", make) / "config.json").read_text() == "made"


def test_concurrent_callers_build_it_once(tmp_path):
    made = []

    def make(path):
        made.append(path)
        time.sleep(0.05)
        write(path)

    threads = [threading.Thread(target=build_once, args=(tmp_path / "weights.bin", make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert (tmp_path / "weights.bin").read_text() == "made"


def test_a_failed_build_leaves_nothing_and_can_be_retried(tmp_path):
    def fail(path):
        write(path)
        raise RuntimeError("no memory")

    target = tmp_path / "weights.bin"
    with pytest.raises(RuntimeError, match="no memory"):
        build_once(target, fail)
    assert not target.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.bin.lock"]
    assert build_once(target, write).read_text() == "made"


def test_an_existing_file_is_found_in_a_read_only_folder(tmp_path):
    target = build_once(tmp_path / "weights.bin", write)
    (tmp_path / "weights.bin.lock").unlink()
    build_once(target, write)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.bin"]


@pytest.fixture
def read_only(monkeypatch):
    """A folder that takes no writes, and one for temporary files; root, who may write everywhere, is somebody else."""
    with tempfile.TemporaryDirectory() as root:
        locked, temporary = Path(root, "locked"), Path(root, "temporary")
        for folder in (locked, temporary):
            folder.mkdir()
        locked.chmod(0o555)
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        privileged = os.geteuid() == 0
        if privileged:
            for folder in (Path(root), locked, temporary):
                os.chown(folder, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, 0)
        try:
            yield locked, temporary
        finally:
            if privileged:
                os.setresuid(0, 0, 0)


def test_what_a_read_only_folder_lacks_is_kept_elsewhere(read_only):
    locked, temporary = read_only
    target = locked / "cache" / "weights.bin"
    made = build_once(target, write)
    assert made.read_text() == "made"
    assert made.parent.parent == temporary
    assert build_once(target, lambda _: pytest.fail("made again")) == made


def test_a_temporary_folder_that_others_can_write_to_is_not_used(read_only):
    locked, temporary = read_only
    folder = temporary / f"biobracket-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="not this user's alone"):
        build_once(locked / "weights.bin", write)


def test_what_refuses_within_a_writable_folder_is_no_reason_to_go_elsewhere(tmp_path):
    def refuse(_):
        raise PermissionError(errno.EACCES, "of the model")

    with pytest.raises(PermissionError, match="of the model"):
        build_once(tmp_path / "weights.bin", refuse)
