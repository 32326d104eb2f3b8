"""A generation service that dies of certain texts, for processes that this folder's `sitecustomize` is put in front of.

The product has no hook for it: Python imports `sitecustomize` at the start of each process, and this one replaces the
function that loads the engine, as soon as its module is imported.
"""

from __future__ import annotations

from pathlib import Path

MARKER = "this-text-kills"
FOLDER = Path(__file__).with_name("deadly_site")
