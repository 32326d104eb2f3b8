"""The Ray Train job, with real workers, one of which is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import httpx
import psutil
import pytest
import ray
from ray._private import services
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from services.extractor import Extractor
from shared.messages import Document, Extraction, check_offsets
from shared.selection.calibration import Calibration
from shared.selection.selector_folder import model_revision
from shared.settings import Settings
from tests.support.commands import Command
from tests.support.generators import config, corpus
from tests.support.tiny import make_tiny_model
from training import job
from training.config import CONFIGS, TrainingError
from training.data.corpora import CorpusError

PATIENCE_S = 900.0


def test_without_ray_there_is_one_worker(tmp_path):
    with pytest.raises(TrainingError, match="workers"):
        job.run_here(config(workers=2), Settings(), tmp_path)


@pytest.mark.parametrize("call", [job.run, job.run_here])
def test_errors_are_raised_before_ray_is_started(tmp_path, monkeypatch, call):
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


def test_only_our_own_messages_are_quoted():
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
    process = Command(tmp_path, {"BASE_MODEL": str(base), "CORPORA": str(corpora), "ADAPTER": ""}, *command)
    killed = _kill_one_after_a_checkpoint(process, out)
    assert process.process.wait(PATIENCE_S) == 0, process.errors.read_text()
    manifest = json.loads((out / "training.json").read_text())
    steps = [line["step"] for line in manifest["history"]]
    # Gone on from a checkpoint: no step is told twice, and none is missing.
    assert steps == list(range(10, steps[-1] + 1, 10))
    assert manifest["history"][-1]["tokens"] > 140_000
    assert manifest["workers"] == 2
    assert manifest["command"][1:4] == ["train", "generator", "--config"]
    said = process.output.read_text() + process.errors.read_text()
    assert said.count("step 10:") == 1  # later ones are told again after the kill
    assert not psutil.pid_exists(killed)
    assert list((out / "tensorboard").glob("events.*"))
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    _served_by_the_application(tmp_path, base, out)


def _served_by_the_application(tmp_path: Path, base: Path, adapter: Path) -> None:
    text = "a gene cde is"
    model = {"BASE_MODEL": str(base), "ADAPTER": str(adapter), "GENERATION_THREADS": "1"}
    application = Command(tmp_path, model, "up")
    try:
        up = application.wait_until_up("Ctrl-C")
        address = f"http://{up.http_host}:{up.http_port}"
        with httpx.Client(base_url=address, timeout=PATIENCE_S, trust_env=False) as client:
            answer = client.post("/v1/extract", json={"text": text, "types": ["protein"]})
        found = Extraction.model_validate_json(answer.content)
        assert found.model_revision == model_revision(Settings(base_model=str(base), adapter=str(adapter)))
        assert [(e.start, e.end) for e in found.entities] == [(7, 10)]
        assert application.send(signal.SIGTERM) == []
    finally:
        application.process.kill()
        application.process.wait()


@pytest.mark.slow
@pytest.mark.corpora
@pytest.mark.timeout(2400)
def test_five_minutes_on_real_corpora_of_which_one_worker_is_killed(corpora, tmp_path):
    """The unchanged configuration. Such a short run learns little, but its adapter can be served."""
    out = tmp_path / "adapter"
    command = Command(
        tmp_path, {"CORPORA": str(corpora)}, "train", "generator", "--config", "five-minutes", "--out", str(out)
    )
    _kill_one_after_a_checkpoint(command, out)
    assert command.process.wait(PATIENCE_S) == 0, command.errors.read_text()
    history = json.loads((out / "training.json").read_text())["history"]
    losses = [line["loss"] for line in history]
    assert losses[-1] < losses[0] or len(losses) == 1  # a slow machine has no time for more than ten steps
    text = "Aspirin relieved the pain."
    extractor = Extractor.load(Settings(adapter=str(out)), calibration=Calibration.default())
    (found,) = extractor.extract([Document(id="x", text=text, types=("chemical", "disease"))])
    assert found.model_revision != model_revision(Settings())
    assert all(check_offsets(text, entity) for entity in found.entities)


def _kill_one_after_a_checkpoint(command: Command, out: Path) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while len(list(out.glob("checkpoints/**/state.pt"))) < 2:  # once there is a second one, the first is registered
        assert command.process.poll() is None, command.errors.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = [p for p in command.descendants() if _trains(p)]
    assert len(workers) == 2, [p.cmdline() for p in command.descendants()]
    os.kill(workers[1].pid, signal.SIGKILL)
    return int(workers[1].pid)


def _trains(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False
