"""Labelled exemplars, searched with FAISS: the contrastive selector decides by the nearest of them.

An exemplar is a span that is a correct mention of its type (accepted) or not (rejected), with its embedding from the
span encoder. A search is always within one type, so there is one FAISS index per type. On disk, a folder:

    <type>.faiss    the vectors, float32 of norm 1, compared by inner product
    <type>.jsonl    the exemplars, one per line, in the order of the vectors
    manifest.json   what the folder holds: :class:`~shared.selection.exemplars.format.Manifest`

A loaded index stays on disk, memory-mapped, and never changes its files: additions are kept in memory, removals are
only marked, and :meth:`~shared.selection.exemplars.index.ExemplarIndex.save` writes both into one folder.
"""
