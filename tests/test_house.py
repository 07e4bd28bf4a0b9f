"""Imports run one way: the runtime needs nothing of PyTorch's wing, and no module imports in a circle."""

import ast
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.docs, pytest.mark.quick]

ROOT = Path(__file__).parents[1]
WINGS = ("clean_lm", "weights", "export", "bench", "demo")
# What each wing may import of the others; clean_lm.models is a wing of its own.
ALLOWED = {
    "clean_lm.models": set(),
    "clean_lm": set(),
    "weights": {"clean_lm.models"},
    "export": {"clean_lm.models", "weights", "clean_lm"},
    "bench": {"clean_lm.models", "weights", "export", "clean_lm"},
    "demo": {"clean_lm.models", "weights", "export", "clean_lm"},
}
RUNTIME = {
    "numpy",
    "onnxruntime",
    "soundfile",
    "tokenizers",
    "tqdm",
    "matplotlib",
    "soxr",
    "huggingface_hub",
}  # the last three: extras
EXTRAS = {  # packages of their own, and what they need of the extras of the same name
    "clean_lm.service": {"anyio", "python_multipart", "prometheus_client", "starlette", "uvicorn"},
    "clean_lm.batch": {"fsspec", "pyarrow", "ray"},
}


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found = {}
    for wing in WINGS:
        for path in sorted((ROOT / wing).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(name: str) -> set[str]:
    """The modules that a module imports anywhere in it, under TYPE_CHECKING and in functions too."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {full if full in MODULES else str(node.module) for full in inner}
    return names - {name}


def wing(name: str) -> str:
    return "clean_lm.models" if name.startswith("clean_lm.models") else name.split(".")[0]


GRAPH = {name: imported(name) for name in MODULES}


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_one_way(name):
    own = wing(name)
    others = {wing(other) for other in GRAPH[name] if other in MODULES} - {own}
    assert others <= ALLOWED[own], f"{name} imports {others - ALLOWED[own]}"


def test_no_circle():
    """Every module can be put after all that it imports. `from clean_lm import x` counts as clean_lm.x alone."""
    waiting = {name: {other for other in names if other in MODULES} for name, names in GRAPH.items()}
    while waiting:
        ready = [name for name, names in waiting.items() if not names & waiting.keys()]
        assert ready, f"a circle of imports among {sorted(waiting)}"
        for name in ready:
            del waiting[name]


@pytest.mark.parametrize("name", [name for name in MODULES if wing(name) == "clean_lm"])
def test_the_runtime_needs_numpy_and_onnxruntime_alone(name):

    outside = {other.split(".")[0] for other in GRAPH[name] if other not in MODULES}
    extra = next((needed for package, needed in EXTRAS.items() if name.startswith(package)), set())
    assert outside <= RUNTIME | extra | set(sys.stdlib_module_names), outside


@pytest.mark.parametrize("package", EXTRAS)
def test_an_extra_is_needed_by_its_command_alone(package):
    """Of what is installed: bench.driver measures one."""
    for name in [name for name in MODULES if not name.startswith((package, "bench.driver"))]:
        used = {other for other in GRAPH[name] if other.startswith(package)}
        assert used <= ({f"{package}.command"} if name == "clean_lm.cli" else set()), name


@pytest.mark.parametrize("name", [name for name in MODULES if wing(name) == "clean_lm.models"])
def test_models_import_torch_alone(name):

    outside = {other.split(".")[0] for other in GRAPH[name] if other not in MODULES}
    assert outside <= {"torch", "einops", "numpy"} | set(sys.stdlib_module_names), outside
