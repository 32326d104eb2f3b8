"""Learning curves: TensorBoard events while a run goes on, a picture of them when it is over."""

from __future__ import annotations

import json
from pathlib import Path

from training.tuning.checkpoints import MANIFEST
from training.tuning.loop import Report


class TensorBoard:
    """Writes reports as TensorBoard events into a folder or URI, by step."""

    def __init__(self, folder: str) -> None:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

        self._writer = SummaryWriter(folder, flush_secs=5)

    def add(self, report: Report) -> None:
        """Losses, learning rate, tokens and scores of a report."""
        scalars = {"loss/train": report.loss, "learning_rate": report.learning_rate, "tokens": float(report.tokens)}
        scalars |= {f"loss/dev/{name}": loss for name, loss in (report.dev or {}).items()}
        scalars |= {f"f1/dev/{name}": score for name, score in (report.f1 or {}).items()}
        for measure, by_corpus in (report.more or {}).items():
            scalars |= {f"{measure}/dev/{name}": value for name, value in by_corpus.items()}
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, report.step)

    def close(self) -> None:
        """Writes what is waiting; :meth:`add` does so within seconds."""
        self._writer.close()


def plot(folder: Path) -> Path:
    """``curves.png`` in the folder of a trained model, from its manifest: losses and measures, against tokens seen."""
    from matplotlib.figure import Figure

    history = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["history"]
    curves = [("dev", "loss, nats a decision")]
    if any(h["f1"] for h in history):
        curves.append(("f1", "strict micro F1 on dev"))
    for h in history:
        more: dict[str, dict[str, float]] = h.pop("more", None) or {}
        h |= more
    further = dict.fromkeys(name for h in history for name in h if isinstance(h[name], dict))
    curves += [(name, f"{name} on dev") for name in further if name not in ("dev", "f1")]
    figure = Figure(figsize=(5 * len(curves), 4), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        if key == "dev":
            axes.plot([h["tokens"] for h in history], [h["loss"] for h in history], color="0.7", label="train")
        rows = [h for h in history if h.get(key)]
        for name in rows[0][key] if rows else ():
            axes.plot([h["tokens"] for h in rows], [h[key][name] for h in rows], marker="o", label=name)
        axes.set(xlabel="tokens seen", title=title)
        if axes.lines:
            axes.legend()
    file = folder / "curves.png"
    figure.savefig(file, dpi=120)
    return file
