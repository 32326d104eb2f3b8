"""The loop on a small regression task; generators and selectors are tested with their own tasks."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from shared.settings import Settings
from tests.support.generators import config
from training.config import TrainingError
from training.tuning.checkpoints import FolderCheckpoints, read_state
from training.tuning.loop import Measurements, learning_rate, train

TARGET = torch.tensor([1.0, -2.0])


class Line(nn.Module):
    """Linear regression on TARGET."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def forward(self, batch):
        return (batch.x @ (self.weight - TARGET)).pow(2).mean()


class Regression:
    """See :class:`training.tuning.loop.Task`."""

    layers = ()
    shared_out = False

    def __init__(self, scores=(), broken_at=None):
        self.data: dict[str, object] = {}
        self.objective, self.dev = Line(), {"toy": [self.batch(0)]}
        self._scores, self._broken_at, self.updates, self.seen = iter(scores), broken_at, 0, []

    def groups(self):
        number = 0
        while True:
            yield number
            number += 1

    def batch(self, group):
        x = torch.randn(8, 2, generator=torch.Generator().manual_seed(group))
        if hasattr(self, "seen"):
            self.seen.append(group)
            if group == self._broken_at:
                x *= math.nan
        return SimpleNamespace(x=x, tokens=100)

    def updated(self):
        self.updates += 1

    def weights(self, masters):
        return {"weight": masters[0].clone()}

    def write(self, weights, folder, *, last):
        torch.save(weights["weight"], folder / "weights.pt")
        return {"last": last}

    def measure(self):
        score = next(self._scores, None)
        return None if score is None else Measurements({"toy": score})


def trained(task, checkpoints, **changes):
    lines = []
    given = config(**{"precision": "float32", "learning_rate": 0.1, "minutes": 60, "warmup_steps": 0} | changes)
    train(lambda _: task, given, Settings(), checkpoints, lines.append, ["train"])
    return lines


def weights(folder):
    return torch.load(folder / "checkpoint" / "weights.pt", weights_only=True)


def test_it_learns_and_reports_every_ten_steps(tmp_path):
    task = Regression()
    lines = trained(task, FolderCheckpoints(tmp_path / "checkpoint"), max_tokens=10_000, dev_every=50)
    assert [line.step for line in lines] == list(range(10, 101, 10))
    assert [line.step for line in lines if line.dev] == [50, 100]
    assert lines[-1].tokens == 10_000
    assert lines[-1].loss < lines[0].loss / 10
    assert task.updates == 101  # once at the start
    torch.testing.assert_close(weights(tmp_path), TARGET, atol=0.1, rtol=0)


def test_a_run_shorter_than_the_first_report_has_a_line(tmp_path):
    (line,) = trained(Regression(), FolderCheckpoints(tmp_path / "checkpoint"), max_tokens=500)
    assert line.step == 5
    assert line.dev is not None
    assert line.learning_rate > 0
    assert [each["step"] for each in read_state(tmp_path / "checkpoint")[0]["history"]] == [5]


class Interrupted(FolderCheckpoints):
    """Interrupts the run after its second checkpoint."""

    saved = 0

    def save(self, metrics, write):
        super().save(metrics, write)
        self.saved += 1
        if self.saved == 2:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(tmp_path):
    changes = {"max_tokens": 2000, "accumulate": 2, "save_minutes": 1e-9}
    whole, first, second = Regression(), Regression(), Regression()
    trained(whole, FolderCheckpoints(tmp_path / "whole" / "checkpoint"), **changes)
    with pytest.raises(KeyboardInterrupt):
        trained(first, Interrupted(tmp_path / "parts" / "checkpoint"), **changes)
    trained(second, FolderCheckpoints(tmp_path / "parts" / "checkpoint"), **changes)
    assert first.seen + second.seen == whole.seen == list(range(20))
    assert torch.equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    histories = [
        [
            {k: v for k, v in line.items() if k != "seconds"}
            for line in read_state(tmp_path / run / "checkpoint")[0]["history"]
        ]
        for run in ("parts", "whole")
    ]
    assert histories[0] == histories[1] != []


def test_patience_ends_the_run_and_the_best_weights_are_kept(tmp_path):
    kept = []

    class Best(Regression):
        def weights(self, masters):
            kept.append(super().weights(masters)["weight"])
            return {"weight": kept[-1]}

    task = Best(scores=[0.1, 0.9, 0.5, 0.4, 0.3])
    lines = trained(task, FolderCheckpoints(tmp_path / "checkpoint"), max_tokens=10_000, measure_every=5, patience=2)
    assert [(line.step, line.f1["toy"]) for line in lines if line.f1] == [(5, 0.1), (10, 0.9), (15, 0.5), (20, 0.4)]
    assert len(kept) == 2
    assert torch.equal(weights(tmp_path), kept[1])


def test_a_last_score_completes_the_last_line(tmp_path):
    task = Regression(scores=[0.5])
    lines = trained(task, FolderCheckpoints(tmp_path / "checkpoint"), max_tokens=1000, measure_every=100, dev_every=10)
    assert [(line.step, line.f1) for line in lines] == [(10, None), (10, {"toy": 0.5})]
    assert lines[0].dev is not None
    assert lines[0].dev == lines[1].dev
    assert lines[0].loss == lines[1].loss
    assert len(read_state(tmp_path / "checkpoint")[0]["history"]) == 1


def test_a_loss_that_is_not_finite_names_the_learning_rate(tmp_path):
    with pytest.raises(TrainingError, match=r"^learning_rate"):
        trained(Regression(broken_at=3), FolderCheckpoints(tmp_path / "checkpoint"), max_tokens=1000)


@given(warmup=st.integers(0, 50), cooldown=st.floats(0.01, 1), step=st.integers(0, 200), done=st.floats(0, 1))
def test_the_learning_rate_rises_stays_and_falls_to_zero(warmup, cooldown, step, done):
    given_ = config(learning_rate=0.01, warmup_steps=warmup, cooldown=cooldown)
    rate = learning_rate(given_, step, done)
    assert 0 <= rate <= 0.01
    assert rate >= learning_rate(given_, step, 1.0) == 0
    assert rate <= learning_rate(given_, step + 1, done)
    if step >= warmup and done <= 1 - cooldown:
        assert rate == pytest.approx(0.01)
