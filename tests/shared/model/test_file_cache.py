import threading
import time

import pytest

from shared.model.file_cache import build_once


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
