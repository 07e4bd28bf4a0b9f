"""Upstream's arrays, graphs that are traced once for the whole run, and bundles."""

import contextlib
import fcntl
import gc
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from clean_lm.language_model import LanguageModel
from clean_lm.session import Graph
from tests.support import GOLDEN, ROOT, Golden

LONGEST = ("test_bench.py", "test_demo.py", "test_sizes.py")


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one more than there are CPUs, as some tests wait for programs that they start."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with the longest tests first: at the end, all workers but one would wait for them."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def hash_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hashes of files are remembered in a folder of the run's, never in the user's, by the programs that tests start
    too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLEAN_LM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def collections() -> Iterator[None]:
    """Python looks for garbage less often, and not in what is imported: a tenth of an export's time otherwise."""
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """ONNX Runtime's threads spin while they wait: with a worker of pytest's on each core, tests with tiny models
    took twice the processor time. Programs that tests start have as many threads as a user's."""
    of_a_user = Graph.session_options

    def session_options(graph: Graph) -> ort.SessionOptions:
        options = of_a_user(graph)
        options.intra_op_num_threads = options.intra_op_num_threads or 1
        return options

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Graph, "session_options", session_options)
        yield


@pytest.fixture(scope="session")
def of_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the workers of a run share."""
    folder = tmp_path_factory.getbasetemp()  # a worker's own, in the run's
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def once(of_run: Path) -> Callable[..., Path]:
    """A folder that is filled once for the whole run, by the worker that is the first to ask for it. Tests only read
    it: a test of another worker may do so at the same time."""

    def once(name: str, fill: Callable[[Path], object]) -> Path:
        path = of_run / "shared" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_name(f"{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                begun = path.with_name(f"{path.name}.new")
                shutil.rmtree(begun, ignore_errors=True)  # of a test that failed
                said = io.StringIO()  # no part of what a test captures
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    fill(begun)
                begun.rename(path)
        return path

    return once


@pytest.fixture(scope="session", autouse=True)
def traces(of_run: Path) -> dict[str, str]:
    """Every export reads the graphs that an export before it has traced, in whichever worker of the run. Returns the
    environment in which a program's exports do so too."""
    folder = of_run / "traces"
    folder.mkdir(exist_ok=True)
    if "export.onnx_graph" in sys.modules:  # else no test that was collected exports
        from export import onnx_graph
        from tests.traces import Traces

        onnx_graph.trace = Traces(folder)
    paths = [ROOT / "tests" / "shared_traces", ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"TRACES": str(folder), "PYTHONPATH": os.pathsep.join(map(str, paths))}


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    opened: dict[str, Golden] = {}

    def load(name: str) -> Golden:
        if name not in opened:
            meta = json.loads((GOLDEN / name / "meta.json").read_text(encoding="utf-8"))
            opened[name] = Golden(GOLDEN / name, dict(np.load(GOLDEN / name / "golden.npz")), meta)
        return opened[name]

    return load


@pytest.fixture(scope="session")
def bundle(once: Callable[..., Path]) -> Callable[..., Path]:
    """The bundle of a golden checkpoint, exported when it is first asked for."""
    from export.lm import export

    def make(name: str, attention: str = "ort", variant: str = "fp32") -> Path:
        checkpoint = GOLDEN / name / "state_dict.bin"
        return once(f"{name}-{attention}-{variant}", lambda out: export(checkpoint, out, attention, [variant]))

    return make


@pytest.fixture(scope="session")
def language_model(bundle: Callable[..., Path]) -> Callable[..., LanguageModel]:
    opened: dict[tuple[str, ...], LanguageModel] = {}

    def load(*key: str) -> LanguageModel:
        if key not in opened:
            opened[key] = LanguageModel.load(bundle(*key))
        return opened[key]

    return load


@pytest.fixture(scope="session")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 with a tokenizer of its 64 tokens: whole words, the eos token last."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", "slow", "house", "drums", "and", "bass", *(f"word{i}" for i in range(56))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder = tmp_path_factory.mktemp("t5")
    shutil.copytree(GOLDEN / "_t5" / "t5-base", folder, dirs_exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def music(once: Callable[..., Path], t5: Path) -> Callable[..., Path]:
    """The whole bundle of a golden checkpoint, language model and codec, where asked with a text encoder."""
    from export.bundle import export

    def make(name: str, text: bool = False) -> Path:
        checkpoint = GOLDEN / name / "state_dict.bin"
        codec = GOLDEN / name / "hf_encodec_32khz"  # what a pointer beside the checkpoint stands for
        parts = codec if codec.exists() else None, t5 if text else None
        return once(f"music{'-text' if text else ''}/{name}", lambda out: export(checkpoint, *parts, out))

    return make


@pytest.fixture(scope="session")
def demo_bundle(once: Callable[..., Path]) -> Path:
    """The bundle of the demo's model, as `make demo` exports it."""
    from export.bundle import export

    return once("demo", lambda out: export(ROOT / "demo" / "state_dict.bin", None, ROOT / "demo" / "t5", out))
