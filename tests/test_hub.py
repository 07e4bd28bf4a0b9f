"""Bundles and checkpoints of the Hugging Face hub, by way of huggingface_hub and a local server with the hub's routes.

Xet, the hub's protocol for large files, is switched off: what is tested is the routes of HTTP.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import export.hub as module
from clean_lm import MusicGen
from clean_lm.manifest import BundleError, Manifest
from export.commands import ExportError
from export.model_card import Source, front_matter, model_card
from tests.hub_server import COMMIT, TOKEN, Hub, running

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "tests" / "golden" / "conformance" / "bundles" / "text"
pytestmark = [pytest.mark.runtime, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    with running(monkeypatch, tmp_path / "cache") as found:
        yield found


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_variant(folder: Path) -> dict[str, bytes]:
    """The kit's bundle with a second variant, whose graph is a copy."""
    files = files_of(folder)
    document = json.loads(files["manifest.json"])
    name, graph = "lm_inference.other.onnx", document["graphs"]["lm_inference"]
    first = document["variants"]["fp32"]
    entry = graph | {"file": name, "data": "lm_inference.onnx.data"}
    document["variants"]["other"] = first | {"graphs": first["graphs"] | {"lm_inference": entry}}
    document["files"][name] = document["files"]["lm_inference.onnx"]
    files[name] = files["lm_inference.onnx"]
    return files | {"manifest.json": json.dumps(document).encode()}


def generated(model: MusicGen) -> np.ndarray:
    model.set_generation_params(duration=0.3)
    return np.asarray(model.generate(["drums"], seed=2))


# MusicGen.get_pretrained


def test_a_bundle_of_the_hub(hub):
    """The same audio as from its folder; the second time nothing but manifest.json's metadata is asked for."""
    hub.repositories["user/repo"] = files_of(BUNDLE)
    expected = generated(MusicGen.load(BUNDLE))
    assert np.array_equal(generated(MusicGen.get_pretrained("user/repo")), expected)
    assert set(hub.downloads()) == set(files_of(BUNDLE))
    hub.requests.clear()
    hub.stored.clear()
    assert np.array_equal(generated(MusicGen.get_pretrained("user/repo")), expected)
    assert hub.downloads() == []
    assert {path for _, path, _ in hub.requests} == {"/user/repo/resolve/main/manifest.json"}


def test_only_the_chosen_variant_is_downloaded(hub):
    """And all files are those of the commit that manifest.json came from."""
    hub.repositories["user/repo"] = with_variant(BUNDLE) | {"notes.txt": b"not the bundle's", "README.md": b"a card"}
    MusicGen.get_pretrained("user/repo", revision="v1")
    assert hub.requests[0][1] == "/user/repo/resolve/v1/manifest.json"
    assert set(hub.downloads()) == set(files_of(BUNDLE))
    other = f"/user/repo/resolve/{COMMIT}/lm_inference.other.onnx"
    assert other not in {path for _, path, _ in hub.requests}
    others = {path.split("/")[4] for _, path, _ in hub.requests if not path.endswith("manifest.json")}
    assert others == {COMMIT}
    assert MusicGen.get_pretrained("user/repo", variant="other").lm.manifest.variant == "other"
    assert other in {path for _, path, _ in hub.requests}
    with pytest.raises(BundleError, match="int3"):
        MusicGen.get_pretrained("user/repo", variant="int3")


def test_a_folder_is_opened(tmp_path):
    """As audiocraft's get_pretrained does; nothing of the hub is imported."""
    code = f"""
import sys
from clean_lm import MusicGen
MusicGen.get_pretrained({str(BUNDLE)!r})
assert "huggingface_hub" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
    assert MusicGen.get_pretrained(BUNDLE).sample_rate == 32000
    with pytest.raises(BundleError, match=r"revision: got 'v1' for the folder .*, expected None"):
        MusicGen.get_pretrained(BUNDLE, revision="v1")


def test_a_token_reaches_the_hub_and_no_other_host(hub):
    hub.repositories["user/repo"] = files_of(BUNDLE)
    hub.private.add("user/repo")
    with pytest.raises(BundleError, match=r"user/repo/manifest\.json: the repository does not exist or is private; "):
        MusicGen.get_pretrained("user/repo")
    hub.requests.clear()
    MusicGen.get_pretrained("user/repo", token=TOKEN)
    assert {token for _, _, token in hub.requests} == {TOKEN}
    assert {token for _, token in hub.stored} == {None}


def test_without_a_connection_the_cache_is_used(hub, monkeypatch):
    from huggingface_hub import constants

    hub.repositories["user/repo"] = files_of(BUNDLE)
    expected = generated(MusicGen.get_pretrained("user/repo"))
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}")
    assert np.array_equal(generated(MusicGen.get_pretrained("user/repo")), expected)
    with pytest.raises(BundleError, match=r"user/other/manifest\.json: not in the local cache, and the hub cannot be "):
        MusicGen.get_pretrained("user/other")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "user/none",
            {},
            "user/none/manifest.json: the repository does not exist or is private; check its name, or give",
        ),
        ("user/gated", {}, "access is gated; accept the terms on the repository's page, and give a token"),
        ("user/repo", {"revision": "v9"}, "the repository has no revision v9"),
        ("user/empty", {}, "not in the repository; expected a bundle that export/hub.py --push uploaded"),
        ("user/half", {}, "user/half/lm_inference.onnx.data: not in the repository"),
        ("no/such/folder", {}, "no/such/folder: no such folder, and no name of a repository"),
        ("../repo", {}, "no such folder, and no name of a repository"),
        ("user/text", {}, "manifest.json: not readable JSON"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, name, options, message):
    hub.repositories |= {"user/repo": files_of(BUNDLE), "user/empty": {}, "user/text": {"manifest.json": b"{"}}
    hub.repositories["user/half"] = files_of(BUNDLE)
    del hub.repositories["user/half"]["lm_inference.onnx.data"]
    hub.gated.add("user/gated")
    with pytest.raises(BundleError) as error:
        MusicGen.get_pretrained(name, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "outside", ["../x", "a/../../x", "/etc/passwd", "C:\\x", "..\\x", "./x", ".git/config", "a//b"]
)
def test_a_bundle_reaches_no_file_outside_of_its_repository(hub, outside):
    """Named as a file, as a graph's or as its weights, of the bundle or of a variant; listed or not."""
    from huggingface_hub import constants

    first = json.loads((BUNDLE / "manifest.json").read_text())
    for place in ("files", "file", "data", "variant"):
        document = json.loads((BUNDLE / "manifest.json").read_text())
        graph = document["graphs"]["lm_inference"]
        if place == "files":
            document["files"][outside] = {"bytes": 1, "sha256": "0" * 64}
        elif place == "variant":
            document["variants"]["other"] = first["variants"]["fp32"] | {
                "graphs": {"lm_inference": graph | {"file": outside}}
            }
        else:
            graph[place] = outside
        hub.repositories["user/repo"] = files_of(BUNDLE) | {"manifest.json": json.dumps(document).encode()}
        shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
        refusals = "expected (files of the repository alone|a file's name)|which `files` does not list"
        with pytest.raises(BundleError, match=refusals):
            MusicGen.get_pretrained("user/repo")
        assert set(hub.downloads()) == {"manifest.json"}


def test_a_changed_file_is_refused(hub):
    files = files_of(BUNDLE)
    hub.repositories["user/repo"] = files | {"lm_inference.onnx.data": files["lm_inference.onnx.data"][:-1] + b"\0"}
    with pytest.raises(BundleError, match=r"lm_inference\.onnx\.data: sha256"):
        MusicGen.get_pretrained("user/repo")


def test_without_huggingface_hub_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(BundleError, match=r"user/repo: no such folder, .* needs pip install huggingface_hub"):
        MusicGen.get_pretrained("user/repo")


# export/hub.py --push


@pytest.fixture
def bundle(tmp_path) -> Path:
    return Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["hub.py", *map(str, arguments)])
    module.main()


def test_push_and_back(hub, bundle, monkeypatch, capsys):
    """What is uploaded is the bundle with its card, and opens by its name."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (bundle / "notes.txt").write_text("not the bundle's")
    run(monkeypatch, "--push", "user/new", "--bundle", bundle, "--base-model", "facebook/musicgen-small", "--private")
    uploaded = hub.repositories["user/new"]
    assert set(uploaded) == {*files_of(BUNDLE), "README.md"}
    assert all(uploaded[name] == content for name, content in files_of(BUNDLE).items())
    assert "user/new" in hub.private
    assert capsys.readouterr().out.endswith(f"{hub.endpoint}/user/new/commit/{COMMIT}\n")
    assert front_matter(uploaded["README.md"].decode())["license"] == "cc-by-nc-4.0"
    assert np.array_equal(generated(MusicGen.get_pretrained("user/new")), generated(MusicGen.load(BUNDLE)))


def test_a_dry_run_uploads_nothing_and_an_edited_card_is_kept(hub, bundle, monkeypatch, capsys):
    run(monkeypatch, "--push", "user/new", "--bundle", bundle, "--license", "mit", "--dry-run")
    assert "not uploaded to user/new: --dry-run" in capsys.readouterr().out
    assert hub.requests == []
    card = (bundle / "README.md").read_text() + "My words.\n"
    (bundle / "README.md").write_text(card)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run(monkeypatch, "--push", "user/new", "--bundle", bundle)
    assert hub.repositories["user/new"]["README.md"].decode() == card
    assert "kept as it is" in capsys.readouterr().out


def test_what_cannot_be_pushed_is_refused_before_anything_is_uploaded(hub, bundle, monkeypatch):
    def refused(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            run(monkeypatch, "--push", "user/new", "--bundle", bundle, *arguments)
        assert "\n" not in str(end.value)
        return str(end.value)

    assert "the licence of its weights is unknown; give --license" in refused()
    assert "user/new: the hub refused: " in refused("--license", "mit")  # no token
    (bundle / "README.md").write_text("no front matter")
    assert "README.md: its front matter has no license" in refused("--license", "mit")
    (bundle / "README.md").unlink()
    data = bundle / "lm_inference.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    assert "lm_inference.onnx.data" in refused("--license", "mit")
    shared = ROOT / "tests" / "golden" / "conformance" / "bundles" / "standard"
    with pytest.raises(ExportError, match=r"shares files with another bundle \(\.\./"):
        module.push("user/new", shared, license="mit", dry_run=True)
    assert hub.repositories == {}


def test_the_card_says_what_was_measured(tmp_path):
    """Front matter as the hub reads it, the variants' measurements, and how to open the bundle in both languages."""
    document = json.loads((BUNDLE / "manifest.json").read_text())
    quality = {"kl": 0.0138, "top1": 0.91666, "perplexity": 22.5457, "perplexity_fp32": 22.317, "source": "own samples"}
    quality |= {"greedy_frames": 100, "codes": 1200, "within_bounds": True}
    fp32 = document["variants"]["fp32"]
    document["variants"]["int4"] = fp32 | {"bytes": 4_464_572, "quality": quality}
    document["source"] = {"repository": "user/tune", "revision": COMMIT, "license": "cc-by-4.0"}
    manifest = Manifest.parse(tmp_path, document)
    card = model_card(manifest, "user/new", Source.of(manifest))
    front, text = card.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(front) == {
        "license": "cc-by-4.0",
        "base_model": "user/tune",
        "library_name": "clean_lm",
        "pipeline_tag": "text-to-audio",
        "tags": ["onnx", "onnxruntime", "musicgen", "music-generation", "audio-continuation"],
    }
    assert "| int4 | 4.5 | float | 0.0138 | 91.7% | 22.55 (22.32) |" in text
    assert "| **fp32** (default) |" in text
    assert 'MusicGen.get_pretrained("user/new")' in text
    assert "MusicGen.load('hf:user/new', { ort })" in text
    assert "[user/tune](https://huggingface.co/user/tune)" in text


@pytest.mark.parametrize(
    ("base", "given", "expected"),
    [
        ("facebook/musicgen-stereo-melody-large", None, "cc-by-nc-4.0"),
        ("facebook/audiogen-medium", None, "cc-by-nc-4.0"),
        ("facebook/musicgen-small", "mit", "mit"),
        ("user/tune", None, None),
        (None, None, None),
    ],
)
def test_the_licence_is_given_or_known(tmp_path, base, given, expected):
    manifest = Manifest.parse(tmp_path, json.loads((BUNDLE / "manifest.json").read_text()))
    assert Source.of(manifest, base, given) == Source(base, expected)


# export/bundle.py --hub


KINDS = {
    "audiocraft": ({"state_dict.bin", "compression_state_dict.bin"}, {"model.safetensors", "pytorch_model.bin"}),
    "safetensors": ({"model.safetensors"}, {"pytorch_model.bin", "tf_model.h5"}),
    "sharded": (
        {"model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"},
        {"pytorch_model.bin", "onnx/model.onnx"},
    ),
    "bin": ({"pytorch_model.bin"}, {"flax_model.msgpack", "samples/a.wav"}),
    "sharded bin": (
        {"pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"},
        {"training_args.bin"},
    ),
    "adapter": ({"adapter_model.safetensors"}, {"optimizer.pt"}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.export
def test_a_checkpoint_of_the_hub(hub, kind):
    """Only the files that an export reads are downloaded, of one kind of weights; then the cache is enough."""
    weights, others = KINDS[kind]
    settings = {"config.json", "generation_config.json", "tokenizer.json", "README.md"}
    card = b"---\nlicense: cc-by-4.0\n---\nA tune."
    hub.repositories["user/tune"] = {name: name.encode() for name in weights | others | settings} | {"README.md": card}
    folder = module.download("user/tune")
    assert set(files_of(folder)) == weights | settings
    assert module.source_of(folder, "user/tune") == {
        "repository": "user/tune", "revision": COMMIT, "license": "cc-by-4.0"
    }  # fmt: skip
    hub.stored.clear()
    assert module.download("user/tune", "v1") == folder
    assert hub.stored == []


@pytest.mark.export
def test_a_private_checkpoint_and_what_is_none(hub, monkeypatch):
    hub.repositories |= {"user/tune": {"state_dict.bin": b"weights"}, "user/none": {"README.md": b"nothing"}}
    hub.private.add("user/tune")
    with pytest.raises(ExportError, match="user/tune: neither in the local cache nor to be fetched: "):
        module.download("user/tune")
    with pytest.raises(ExportError, match=r"user/none: holds no checkpoint: expected state_dict\.bin.*got README\.md"):
        module.download("user/none")
    with pytest.raises(ExportError, match="neither in the local cache"):
        module.download("user/none", "v9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert set(files_of(module.download("user/tune"))) == {"state_dict.bin"}


@pytest.mark.export
def test_without_a_connection_a_cached_checkpoint_is_used(hub, monkeypatch):
    from huggingface_hub import constants

    hub.repositories["user/tune"] = {"state_dict.bin": b"weights", "model.safetensors": b"more", "a.wav": b"sound"}
    folder = module.download("user/tune")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert module.download("user/tune") == folder
    with pytest.raises(ExportError, match="user/other: neither in the local cache nor to be fetched"):
        module.download("user/other")
