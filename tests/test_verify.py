"""verify.py agrees where it should, and only there."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from clean_lm.language_model import LanguageModel
from export.bundle_weights import BundleWeights
from export.lm_parity import bundle_logits, golden
from export.parity import compare
from export.reference import GUIDED, Request, reference_logits
from export.verify import verify
from tests.support import GOLDEN, NAMES
from weights.lm import load

pytestmark = pytest.mark.export

ROOT = Path(__file__).parents[1]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "export/verify.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command(bundle):
    done = run("--bundle", bundle("text"), "--ckpt", GOLDEN / "text", "--golden", GOLDEN / "text")
    assert (done.returncode, done.stderr) == (0, "")
    *_, modules, upstream, tokens = done.stdout.splitlines()
    assert modules.startswith("agrees with the PyTorch modules: 42 calls")
    assert upstream.startswith("agrees with upstream's arrays: 142 calls")
    assert tokens == "every greedy generation has upstream's tokens"
    for row in ("guided      prefill of 13", "null text   step 20", "none_p17    prefill of 18", "two         step 32"):
        assert row in done.stdout


@pytest.mark.parametrize("name", [name for name in NAMES if name != "text"])
def test_against_upstream(bundle, name):
    steps, wrong = golden(bundle(name, "standard"), GOLDEN / name)
    assert not wrong
    assert all(step.agrees for step in steps)


def test_the_bundle_of_another_checkpoint(bundle, capsys):
    """Both have the same layout: the weights alone differ."""
    assert not verify(bundle("text"), GOLDEN / "finetune_fp16", GOLDEN / "finetune_fp16")
    printed = capsys.readouterr().out
    assert "DISAGREES with the PyTorch modules" in printed
    assert "DISAGREES with upstream's arrays" in printed
    assert "desc: " in printed
    assert "tokens differ from upstream's" in printed


def test_a_bundle_of_another_layout(bundle):
    done = run("--bundle", bundle("stereo"), "--ckpt", GOLDEN / "text")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "codebooks" in done.stderr


@pytest.mark.parametrize("missing", ["--bundle", "--ckpt", "--golden"])
def test_a_missing_folder(bundle, tmp_path, missing):
    given = {
        "--bundle": bundle("text"),
        "--ckpt": GOLDEN / "text",
        "--golden": GOLDEN / "text",
        missing: tmp_path / "no",
    }
    done = run(*(word for pair in given.items() for word in pair))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert str(tmp_path / "no") in done.stderr


def test_a_small_change_of_a_weight_is_seen(bundle, tmp_path):
    """One weight in 280,000, changed by as much as a rounding to float16 never would."""
    package = torch.load(GOLDEN / "text" / "state_dict.bin", weights_only=True)
    package["best_state"]["transformer.layers.1.linear2.weight"][3, 5] += 0.5
    torch.save(package, tmp_path / "state_dict.bin")
    assert not verify(bundle("text"), tmp_path, None)


@pytest.mark.parametrize("stored", ["checkpoint", "bundle"])
def test_one_pass_of_the_reference_is_every_call(bundle, stored):
    """Logits after every column and what the caches hold, as the graph has them call after call; from either source."""
    source = load(GOLDEN / "text") if stored == "checkpoint" else BundleWeights(bundle("text"))
    c, rng, present = source.config, np.random.default_rng(0), {}
    columns = rng.integers(0, c.card, (2, c.codebooks, 9))
    texts = [rng.standard_normal((5, c.text_dim), dtype=np.float32), None]

    def visit(layer: int, name: str, cache: tuple[torch.Tensor, torch.Tensor]) -> None:
        present.update({f"past_key_values.{layer}.{part}": x for part, x in zip(("key", "value"), cache, strict=True)})

    found = reference_logits(source, columns, {"mixed": Request(texts)}, None, torch.float64, visit)["mixed"]
    lm = LanguageModel.load(bundle("text"))
    near = lambda ours, theirs: np.abs(ours - np.asarray(theirs)).max() < 1e-4 * np.abs(np.asarray(theirs)).max()  # noqa: E731
    assert near(bundle_logits(lm, columns, 4, Request(texts)), found[3:])
    decoder = lm.decoder(2, 9, texts, GUIDED)
    decoder.prefill(columns, np.zeros((2, c.codebooks), np.float32))
    assert present.keys() == decoder.caches.keys()
    assert all(near(cache, present[name]) for name, cache in decoder.caches.items())


def test_numbers_of_a_comparison():
    reference = np.zeros((2, 1, 1, 8))
    reference[:, 0, 0, :6] = [10, 8, 6, 4, 2, 0]
    ours = reference.copy()
    ours[1, 0, 0, :2] = [8.5, 9]  # the best two change places
    ours[1, 0, 0, 6] = 3  # and one code enters the best five
    first, second = compare("case", 4, ours, reference)
    assert (first.call, first.max, first.relative, first.top5, first.tokens) == ("prefill of 4", 0, 0, 1, 1)
    assert (second.call, second.max, second.relative, second.tokens) == ("step 1", 3, 0.3, 0)
    assert second.mean == pytest.approx(5.5 / 8)
    assert second.top5 == 0.8
    assert first.agrees
    assert not second.agrees
