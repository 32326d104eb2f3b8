"""See tests/support/deadly.py."""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_MODULE = "services.generation.engines"
_MARKER = "this-text-kills"


def _deadly(load: Any) -> Any:
    def replaced(*arguments: Any) -> Any:
        engine = load(*arguments)
        submit = engine.submit

        def deadly(request: Any) -> Any:
            if _MARKER in request.segment.text:
                os._exit(1)
            return submit(request)

        engine.submit = deadly
        return engine

    return replaced


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            module.load = _deadly(module.load)  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
