"""Programs that a test starts with this folder on PYTHONPATH read the graphs that the run's tests have traced, from the
folder in TRACES. Nothing is imported before a program imports export.onnx_graph."""

import os
import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAME = "export.onnx_graph"


class Sharing(MetaPathFinder):
    """Finds export.onnx_graph as ever; once it is run, its trace is a shared one."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != NAME:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(NAME)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            from tests.traces import Traces

            module.trace = Traces(Path(os.environ["TRACES"]))

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Sharing())
