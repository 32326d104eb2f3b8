import pytest
import torch

from shared.model.digests import SUMS, check_sums
from training.tuning.checkpoints import MANIFEST, FolderCheckpoints, export, read_state, write_state


def written(folder, step, best=None):
    write_state(folder, {"step": step}, best or {}, {"history": []})
    (folder / "adapter_model.safetensors").write_text(f"weights of step {step}")


def test_the_newest_checkpoint_replaces_the_one_before(tmp_path):
    checkpoints = FolderCheckpoints(tmp_path / "checkpoint")
    with checkpoints.latest() as found:
        assert found is None
    for step in (1, 2):
        checkpoints.save({}, lambda folder, step=step: written(folder, step))
    with checkpoints.latest() as found:
        assert read_state(found) == ({"step": 2}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_failed_save_keeps_the_checkpoint_before(tmp_path):
    checkpoints = FolderCheckpoints(tmp_path / "checkpoint")
    checkpoints.save({}, lambda folder: written(folder, 1))

    def fail(folder):
        written(folder, 2)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.save({}, fail)
    with checkpoints.latest() as found:
        assert read_state(found)[0] == {"step": 1}
    checkpoints.save({}, lambda folder: written(folder, 3))
    with checkpoints.latest() as found:
        assert read_state(found)[0] == {"step": 3}


def test_export_leaves_out_what_only_resuming_needs(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    written(folder, 1, {"lora": torch.ones(2)})
    assert torch.equal(read_state(folder)[1]["lora"], torch.ones(2))
    out = export(folder, tmp_path / "out" / "adapter")
    assert sorted(path.name for path in out.iterdir()) == [SUMS, "adapter_model.safetensors", MANIFEST]
    check_sums(out)
