"""Learning curves: TensorBoard events during a run, a plot after it."""

from __future__ import annotations

import json
from pathlib import Path

from training.tuning.checkpoints import MANIFEST
from training.tuning.loop import Progress


class TensorBoard:
    """Writes progress as TensorBoard events into a folder or URI."""

    def __init__(self, folder: str) -> None:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

        self._writer = SummaryWriter(folder, flush_secs=5)

    def add(self, progress: Progress) -> None:
        """Adds losses, learning rate, tokens and scores."""
        scalars = {
            "loss/train": progress.loss,
            "learning_rate": progress.learning_rate,
            "tokens": float(progress.tokens),
        }
        scalars |= {f"loss/dev/{name}": loss for name, loss in (progress.dev or {}).items()}
        scalars |= {f"f1/dev/{name}": score for name, score in (progress.f1 or {}).items()}
        for measure, by_corpus in (progress.more or {}).items():
            scalars |= {f"{measure}/dev/{name}": value for name, value in by_corpus.items()}
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, progress.step)

    def close(self) -> None:
        """Flushes pending events; otherwise they are written within seconds."""
        self._writer.close()


def plot(folder: Path) -> Path:
    """Writes ``curves.png`` into the folder of a trained model: losses and scores against tokens, from its manifest."""
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
