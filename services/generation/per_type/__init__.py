"""The ``copy`` engine for adapters of scheme ``per-type.v1``: a line for each type. It leaves with the last such
adapter.
"""
