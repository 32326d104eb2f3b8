"""Vectors, exemplars and small indexes of them."""

import faiss
import numpy as np

from shared.selection.exemplars.format import Exemplar
from shared.selection.exemplars.index import ExemplarIndex

ENCODER = "0123456789abcdef"
DIM = 16
KINDS = ("flat", "ivf", "hnsw")
CLASSES = {"flat": faiss.IndexFlatIP, "ivf": faiss.IndexIVFFlat, "hnsw": faiss.IndexHNSWFlat}


def unit(seed, n, dim=DIM, clusters=0):
    """Vectors of norm 1, around that many ``clusters`` if given."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, dim), dtype=np.float32)
    if clusters:
        vectors = rng.standard_normal((clusters, dim), dtype=np.float32)[rng.integers(clusters, size=n)] + vectors / 3
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def labelled(n, type_="protein", prefix="e"):
    return [
        Exemplar(id=f"{prefix}{i}", type=type_, accepted=i % 3 > 0, text=f"mention {i}", source="genia", time=i)
        for i in range(n)
    ]


def build(folder, *batches, kind="flat", dim=DIM, flat_below=100, **options):
    return ExemplarIndex.build(folder, batches, kind=kind, encoder=ENCODER, dim=dim, flat_below=flat_below, **options)


def load(folder, **options):
    return ExemplarIndex.load(folder, encoder=ENCODER, **options)


def found_ids(index, type_, vectors, k):
    positions = index.search(type_, vectors, k).positions
    return [[index.exemplar(type_, at).id for at in row if at >= 0] for row in positions]


def proteins():
    return np.concatenate([unit(0, 250, clusters=8), unit(1, 170, clusters=8)[20:]])
