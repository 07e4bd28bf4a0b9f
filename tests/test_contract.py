"""CONTRACT.md: its loops run and give upstream's codes, and its tables name the graph's tensors."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clean_lm.generation import Sampling
from clean_lm.language_model import LanguageModel
from clean_lm.manifest import Manifest
from clean_lm.philox import uniforms
from clean_lm.windows import Window, windows
from tests.conformance import make as make_conformance
from tests.support import ATTENTION, NAMES, PREFIXED, ROOT

pytestmark = [pytest.mark.parity, pytest.mark.docs]

CONTRACT = (Path(__file__).parents[1] / "export" / "CONTRACT.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generate():
    [block] = re.findall(r"```python\n(.*?)```", CONTRACT, re.DOTALL)
    namespace = {}
    exec(compile(block, "CONTRACT.md", "exec"), namespace)
    return namespace["generate"]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["desc_p17", "none", "p1"])
def test_the_loop(golden, bundle, generate, name, attention, case):
    g = golden(name)
    tokens = g[f"gen.{case}.tokens"]
    prompt = g.get(f"gen.{case}.prompt")
    prompt = tokens[:, :, :0] if prompt is None else prompt
    texts = g.texts(g.meta["gen"][case]["descriptions"])
    texts = None if texts[0] is None else np.stack(texts)
    uniform = np.zeros((200, 1, tokens.shape[1]), dtype=np.float32)
    ours = generate(bundle(name, attention), prompt, texts, tokens.shape[2], uniform, temperature=0)
    np.testing.assert_array_equal(ours, tokens)


@pytest.mark.parametrize("attention", ATTENTION)
def test_seeds(golden, bundle, language_model, generate, attention):
    g = golden("text")
    prompt, texts = g["gen.mixed_p9.prompt"], g.texts([g.meta["D1"]] * 2)
    uniform = np.stack([uniforms(seed, 24, 4) for seed in (5, 6)], axis=1)
    ours = generate(bundle("text", attention), prompt, np.stack(texts), 30, uniform)
    lm = language_model("text", attention)
    np.testing.assert_array_equal(ours, lm.generate_codes(prompt, texts, frames=30, seed=5))


def of_variant(bundle: Path, folder: Path, variant: str) -> Path:
    """A copy of a bundle with a variant's graphs in place of the default's, whichever that is."""
    shutil.copytree(bundle, folder)
    tree = json.loads((folder / "manifest.json").read_text())
    tree["graphs"] |= tree["variants"][variant]["graphs"]
    tree |= {"variant": variant, "cache_update": tree["variants"][variant]["cache_update"]}
    (folder / "manifest.json").write_text(json.dumps(tree))
    return folder


@pytest.mark.parametrize("variant", ["int8", "fp16"])
def test_a_variant(golden, bundle, generate, tmp_path, variant):
    """Caches of another type, as the manifest has it."""
    folder = of_variant(bundle("text", "ort", variant), tmp_path / "bundle", variant)
    g = golden("text")
    prompt, texts = g["gen.mixed_p9.prompt"], g.texts([g.meta["D1"]] * 2)
    uniform = np.stack([uniforms(seed, 24, 4) for seed in (5, 6)], axis=1)
    ours = generate(folder, prompt, np.stack(texts), 30, uniform)
    lm = LanguageModel.load(folder, variant=variant)
    np.testing.assert_array_equal(ours, lm.generate_codes(prompt, texts, frames=30, seed=5))


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", PREFIXED)
@pytest.mark.parametrize("case", ["desc_p17", "dbl_beta5", "none"])
def test_the_loop_behind_a_prefix(golden, bundle, language_model, generate, name, attention, case):
    """Of melody and style models, made as the section on them says."""
    g, lm = golden(name), language_model(name, attention)
    said, tokens = g.meta["gen"][case], g[f"gen.{case}.tokens"]
    given = {key: value for key, value in said["kwargs"].items() if key != "max_gen_len"}
    sampling = Sampling(use_sampling=False, **given)
    wavs = said["wav"] and [g["cond.desc.self_wav"][0]]
    conditioning = lm.conditioner(g.texts(said["descriptions"]), wavs, sampling.guidance)
    prompt = g.get(f"gen.{case}.prompt")
    prompt = tokens[:, :, :0] if prompt is None else prompt
    uniform = np.zeros((200, 1, tokens.shape[1]), dtype=np.float32)
    frames, beta = tokens.shape[2], sampling.cfg_coef_beta or 1.0
    how = {"temperature": 0, "prefix": conditioning.prefix, "cfg_coef_beta": beta}
    np.testing.assert_array_equal(generate(bundle(name, attention), prompt, None, frames, uniform, **how), tokens)


def test_the_loop_in_javascript(golden, bundle, language_model, tmp_path):
    """In the same cases, which one process of Node reads as a kit: js/test/contract.test.js."""
    if not shutil.which("node") or not (ROOT / "js" / "node_modules").exists():
        pytest.skip("needs node and js/node_modules: ONNXRUNTIME_NODE_INSTALL=skip npm ci --prefix js")
    cases, bundles = [], tmp_path / "bundles"
    bundles.mkdir()

    def add(name: str, folder: Path, given: dict[str, Any], codes: np.ndarray) -> None:
        case = make_conformance.case(f"{folder.name} {name}", "generate", given, {"codes": codes}, [folder.name])
        cases.append(case)
        if not (bundles / folder.name).exists():
            (bundles / folder.name).symlink_to(folder)

    for name in (*NAMES, *PREFIXED):
        g = golden(name)
        for attention in ATTENTION:
            for case in ("desc_p17", "none", "dbl_beta5" if name in PREFIXED else "p1"):
                said, codes = g.meta["gen"][case], g[f"gen.{case}.tokens"]
                sampling = make_conformance.GREEDY | {"cfg_coef_beta": said["kwargs"].get("cfg_coef_beta")}
                prompt, frames = g.get(f"gen.{case}.prompt"), codes.shape[2]
                given = make_conformance.generation(g, said, prompt, sampling=sampling, frames=frames)
                add(case, bundle(name, attention), given, codes)
    g = golden("text")
    said, prompt, texts = (
        {"descriptions": [g.meta["D1"]] * 2, "wav": None},
        g["gen.mixed_p9.prompt"],
        g.texts([g.meta["D1"]] * 2),
    )
    given = make_conformance.generation(g, said, prompt, sampling=make_conformance.DRAWN, frames=30, seed="5")
    for attention in ATTENTION:
        lm = language_model("text", attention)
        add("seeds", bundle("text", attention), given, lm.generate_codes(prompt, texts, frames=30, seed=5))
    for variant in ("int8", "fp16"):
        folder = of_variant(bundle("text", "ort", variant), tmp_path / f"text-{variant}", variant)
        lm = LanguageModel.load(folder, variant=variant)
        add("seeds", folder, given, lm.generate_codes(prompt, texts, frames=30, seed=5))

    make_conformance.write(tmp_path, cases)
    program = ["node", "--test", "--test-reporter=tap", ROOT / "js" / "test" / "contract.test.js"]
    environment = os.environ | {"CLEAN_LM_KIT": str(tmp_path)}
    done = subprocess.run(program, check=False, capture_output=True, text=True, env=environment)
    passed = re.findall(r"^ok \d+ - (.*) \[", done.stdout, re.MULTILINE)
    assert (passed, done.returncode) == ([case["name"] for case in cases], 0), done.stdout + done.stderr


def test_windows_as_the_contract_says():
    """Its formulas, against what the runtime does."""
    f, duration, longest, stride, known = 50.0, 75.3, 30.0, 18.2, 150
    start, expected = 0, []
    while start + known < int(duration * f):
        frames = int(min(duration - start / f, longest) * f)
        expected.append(Window(start, known, frames))
        start, known = start + int(f * stride), max(0, frames - int(f * stride))
    assert list(windows(duration, longest, stride, f, 150)) == expected


def test_the_tables_name_every_tensor(bundle):
    own = {"prefix", "cfg_coef_beta"}  # in melody and style models only
    for graph, entry in Manifest.read(bundle("text")).document["graphs"].items():
        section = re.split(r"^## ", CONTRACT, flags=re.MULTILINE)
        [section] = [text for text in section if text.startswith(f"{graph}\n")]
        named = set(re.findall(r"^\| `([\w.{}]+)`", section, re.MULTILINE))
        found = {re.sub(r"\.0\.key$", ".{i}.key", t["name"]) for t in entry["inputs"] + entry["outputs"]}
        assert named - own == {name for name in found if not re.search(r"\.\d+\.(key|value)$", name)}
    melody = Manifest.read(bundle("melody"))
    assert all(name in melody.graphs["lm_inference"].inputs for name in own)
    assert set(melody.graphs) == {"lm_condition", "lm_inference", "lm_melody"}
