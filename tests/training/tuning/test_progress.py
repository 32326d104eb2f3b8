import json
import struct
from dataclasses import asdict

from tensorboardX.proto import event_pb2

from training.tuning.checkpoints import MANIFEST
from training.tuning.loop import Progress
from training.tuning.progress import TensorBoard, plot

REPORTS = [
    Progress(10, 1000, 2.0, 0.5, 1e-3),
    Progress(20, 2000, 4.0, 0.25, 5e-4, dev={"toy": 0.5}, f1={"toy": 0.75}, more={"recall_at_1": {"toy": 0.625}}),
]


def scalars(file):
    """The scalars in a file of TensorBoard events (length, checksum, event, checksum), by name and step."""
    raw, at, found = file.read_bytes(), 0, {}
    while at < len(raw):
        (length,) = struct.unpack_from("<Q", raw, at)
        event = event_pb2.Event.FromString(raw[at + 12 : at + 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        at += 12 + length + 4
    return found


def test_events(tmp_path):
    board = TensorBoard(str(tmp_path))
    for report in REPORTS:
        board.add(report)
    board.close()
    (file,) = tmp_path.glob("events.*")
    found = scalars(file)
    assert found["loss/train", 10] == 0.5
    assert found["loss/dev/toy", 20] == 0.5
    assert found["f1/dev/toy", 20] == 0.75
    assert found["recall_at_1/dev/toy", 20] == 0.625
    assert found["tokens", 20] == 2000.0
    assert ("f1/dev/toy", 10) not in found


def test_curves(tmp_path):
    (tmp_path / MANIFEST).write_text(json.dumps({"history": [asdict(report) for report in REPORTS]}))
    assert plot(tmp_path).read_bytes().startswith(b"\x89PNG")


def test_curves_of_a_run_without_scores(tmp_path):
    (tmp_path / MANIFEST).write_text(json.dumps({"history": [asdict(REPORTS[0])]}))
    assert plot(tmp_path).is_file()
