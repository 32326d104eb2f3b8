"""The Ray Train job, with real workers, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray._private import services
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from services.extractor import Extractor
from shared.calibration import Calibration
from shared.messages import Document
from shared.settings import Settings
from tests.tiny import make_tiny_model
from tests.training.test_generator import config, corpus
from training import job
from training.config import CONFIGS, TrainingError
from training.corpora import CorpusError

PATIENCE_S = 900.0


def test_without_ray_there_is_one_worker(tmp_path):
    with pytest.raises(TrainingError, match="workers"):
        job.run_here(config(workers=2), Settings(), tmp_path)


@pytest.mark.parametrize("call", [job.run, job.run_here])
def test_what_is_wrong_is_told_before_ray_is_started(tmp_path, monkeypatch, call):
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("started"))
    with pytest.raises(CorpusError, match="no folder `none`"):
        call(config(corpora={"none": {}}), Settings(), tmp_path)


def test_a_node_of_our_own_listens_on_loopback_only(tmp_path, monkeypatch):
    class Started(Exception):
        pass

    def init(**given):
        raise Started(given)

    monkeypatch.setattr(services, "resolve_ip_for_localhost", services.resolve_ip_for_localhost)  # undone afterwards
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    corpus(tmp_path / "toy")
    with pytest.raises(Started) as started:
        job.run(config(corpora={str(tmp_path / "toy"): {}}), Settings(), tmp_path / "out")
    assert started.value.args[0]["_node_ip_address"] == "127.0.0.1"


def test_causes_are_our_own_messages_and_nobody_elses():
    failures = {0: CorpusError("corpus: no folder"), 1: ValueError("fever")}
    wrapped = {rank: UserExceptionWithTraceback(error, "") for rank, error in failures.items()}
    told = job._causes(WorkerGroupError("", wrapped))
    assert told == "worker 0: corpus: no folder; worker 1: ValueError"


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed(tmp_path):
    corpora = tmp_path / "corpora"
    corpus(corpora / "toy")
    base = make_tiny_model(tmp_path / "base")
    out = tmp_path / "adapter"
    own = {k: v for k, v in os.environ.items() if not k.startswith("BIOBRACKET_")}
    changes = {
        "max_tokens": 150_000,
        "minutes": 60,
        "batch_tokens": 256,
        "save_minutes": 0.05,
        "learning_rate": "5e-3",
        "dev_every": 50,
        "precision": "float32",
    }
    command = ["train", "generator", "--config", str(CONFIGS / "five-minutes.yaml"), "--out", str(out)]
    command += ["--set", "corpora=null", "--set", "corpora.toy={}"]
    for name, value in changes.items():
        command += ["--set", f"{name}={value}"]
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", "from services.cli import main; main()", *command],
            env=own
            | {
                "BIOBRACKET_BASE_MODEL": str(base),
                "BIOBRACKET_CORPORA": str(corpora),
                "BIOBRACKET_ADAPTER": "",
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
            stdout=said,
            stderr=subprocess.STDOUT,
        )
    killed = _kill_one_after_a_checkpoint(process, out)
    assert process.wait(PATIENCE_S) == 0, (tmp_path / "said").read_text()
    manifest = json.loads((out / "training.json").read_text())
    steps = [line["step"] for line in manifest["history"]]
    # Gone on from a checkpoint: no step is told twice, and none is missing.
    assert steps == list(range(10, steps[-1] + 1, 10))
    assert manifest["history"][-1]["tokens"] > 140_000
    assert manifest["workers"] == 2
    assert manifest["command"][1:4] == ["train", "generator", "--config"]
    said = (tmp_path / "said").read_text()
    assert said.count("step 10:") == 1  # later ones are told again after the kill
    assert not psutil.pid_exists(killed)
    assert list((out / "tensorboard").glob("events.*"))
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    settings = Settings(base_model=str(base), adapter=str(out))
    served = Extractor.load(settings, calibration=Calibration.default())
    (found,) = served.extract([Document(id="x", text="a gene cde is", types=("protein",))])
    assert [(e.start, e.end) for e in found.entities] == [(7, 10)]


def _kill_one_after_a_checkpoint(process: subprocess.Popen[bytes], out: Path) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while len(list(out.glob("checkpoints/**/state.pt"))) < 2:  # once there is a second one, the first is registered
        assert process.poll() is None, (out.parent / "said").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if _trains(p)]
    assert len(workers) == 2, [p.cmdline() for p in psutil.Process(process.pid).children(recursive=True)]
    os.kill(workers[1].pid, signal.SIGKILL)
    return int(workers[1].pid)


def _trains(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False
