"""manifest.json: what is refused and how, one table for Python, JavaScript and the JSON Schema."""

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from clean_lm.manifest import LARGEST, BundleError, Manifest
from clean_lm.manifest_checks import model_sha256
from clean_lm.manifest_fields import MODEL, PARTS, Document
from clean_lm.musicgen import MusicGen
from clean_lm.typed_json import FieldError, kinds_of, read_as
from export import manifest_schema
from tests.support import ROOT

pytestmark = [pytest.mark.quick, pytest.mark.runtime]

KIT = ROOT / "tests/golden/conformance"
BUNDLES = sorted((KIT / "bundles").iterdir())
TEXT = KIT / "bundles/text"
CASES = json.loads((KIT / "manifests.json").read_text())


def document(bundle: Path = TEXT) -> dict[str, Any]:
    return json.loads((bundle / "manifest.json").read_text())


def changed(case: dict[str, Any]) -> Any:
    """The text bundle's manifest with one entry replaced, or removed where the case has no value; or with several."""
    found = copy.deepcopy(document())
    if "merge" in case:
        return found | case["merge"]
    if not case["at"]:
        return case["value"]
    *way, last = case["at"]
    parent = found
    for step in way:
        parent = parent[step]
    if "value" in case:
        parent[last] = copy.deepcopy(case["value"])
    else:
        del parent[last]
    return found


def name_of(case: dict[str, Any]) -> str:
    value = json.dumps(case["value"])[:20] if "value" in case else case["field"] if "merge" in case else "removed"
    return f"{'.'.join(map(str, case['at']))}={value}"


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_wrong_entry_is_one_line_that_names_it(case):
    with pytest.raises(BundleError, match=re.escape(case["field"])) as error:
        Manifest.parse(TEXT, changed(case))
    message = str(error.value)
    assert message.startswith(str(TEXT / "manifest.json"))
    assert message.isprintable()
    assert len(message) < 600


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_the_kit_reads(bundle):
    found = Manifest.read(bundle)
    assert found.language_model.layers == document(bundle)["model"]["layers"]
    assert document(bundle)["model_sha256"] == model_sha256(document(bundle)["model"])


def test_the_schema_is_written_from_the_fields():
    for path, text in manifest_schema.files().items():
        assert path.read_text() == text, "run python -m export.manifest_schema"


def test_the_schema_says_what_the_dataclasses_say():
    """An independent validator of JSON Schemas refuses what they refuse, and no more."""
    schema = json.loads(manifest_schema.SCHEMA.read_text())
    validator = jsonschema.Draft202012Validator(schema)
    for bundle in BUNDLES:
        assert validator.is_valid(document(bundle))
    for case in CASES:
        tree = changed(case)
        assert validator.is_valid(tree) == typed(tree), name_of(case)


def typed(tree: Any) -> bool:
    """Whether the fields alone are right, and those that its graphs need are there."""
    try:
        found = read_as(Document, tree, "")
    except FieldError:
        return False
    needed = {name for graph, part in PARTS.items() if graph in found.graphs for name in manifest_schema.required(part)}
    return needed <= found.model.keys() and (
        "lm_inference" not in found.graphs or len(found.defaults) == len(document()["defaults"])
    )


def test_parts_agree_on_what_they_share():
    for part in PARTS.values():
        for name, kind in kinds_of(part).items():
            assert kind == MODEL[name] or name == "frame_rate"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not readable JSON"),
        (b"\xff\xfe", "not readable JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"format":' * 900 + b"1" + b"}" * 900, "format is an object of 1"),
        (b'{"format": "clean_lm", "version": ' + b"9" * 5000 + b"}", "not readable JSON"),
        (b'{"format": "clean_lm", "version": NaN}', "not readable JSON: NaN"),
        (b'{"format": "\\ud800", "version": 1}', "format is '\\\\ud800'"),
        (b"null", "format is None"),
    ],
    ids=range(8),
)
def test_what_is_no_manifest(tmp_path, text, message):
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match=re.escape(message).replace("\\\\\\\\", "\\\\")) as error:
        Manifest.read(tmp_path)
    assert str(error.value).isprintable()


def test_a_manifest_larger_than_any_is_not_read(tmp_path):
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(BundleError, match="expected at most"):
        Manifest.read(tmp_path)


def linked(folder: Path) -> Path:
    """The text bundle, its files as links."""
    folder.mkdir()
    for path in TEXT.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "loop"])
@pytest.mark.parametrize("name", ["manifest.json", "lm_inference.onnx", "lm_inference.onnx.data", "tokenizer.json"])
def test_only_regular_files_are_opened(tmp_path, name, kind):
    bundle = linked(tmp_path / "bundle")
    (bundle / name).unlink(missing_ok=True)
    make = {
        "pipe": os.mkfifo,
        "folder": os.mkdir,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "loop": lambda path: path.symlink_to(path),
    }
    make[kind](bundle / name)
    with pytest.raises(BundleError, match=re.escape(name)) as error:
        MusicGen.load(bundle, hashes=False)
    assert "\n" not in str(error.value)


def test_a_confined_bundle_reaches_nothing_outside(tmp_path):
    bundle = linked(tmp_path / "bundle")
    MusicGen.load(bundle)
    with pytest.raises(BundleError, match="lies outside of"):
        MusicGen.load(bundle, confine=bundle)
    MusicGen.load(TEXT, confine=KIT)
    shared = tmp_path / "shared"
    shared.mkdir()
    tree = document()
    for entry in (*tree["graphs"].values(), *tree["variants"]["fp32"]["graphs"].values()):
        entry["file"] = f"../first/{entry['file']}"
        if "data" in entry:
            entry["data"] = f"../first/{entry['data']}"
    tree["files"] = {
        name if name == "tokenizer.json" else f"../first/{name}": file for name, file in tree["files"].items()
    }
    (tmp_path / "first").symlink_to(TEXT)
    (shared / "manifest.json").write_text(json.dumps(tree))
    for name in set(document()["files"]) & {"tokenizer.json"}:
        (shared / name).write_bytes((TEXT / name).read_bytes())
    MusicGen.load(shared)
    with pytest.raises(BundleError, match="lies outside of"):
        MusicGen.load(shared, confine=shared)


def test_weights_that_are_not_listed_are_not_read(tmp_path):
    """They would be read without a hash."""
    bundle = linked(tmp_path / "bundle")
    tree = document()
    del tree["files"]["lm_inference.onnx.data"]
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(BundleError, match=r"lm_inference\.onnx\.data: not listed"):
        MusicGen.load(bundle)


def test_sizes_are_compared_without_hashes(tmp_path):
    bundle = linked(tmp_path / "bundle")
    path = bundle / "lm_inference.onnx.data"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=f"{len(content) - 1} bytes"):
        MusicGen.load(bundle, hashes=False)


@pytest.mark.parametrize(("at", "value"), [("dtype", "float16"), ("shape", ["batch", 4, "columns"])])
def test_a_graph_has_the_tensors_that_the_manifest_says(tmp_path, at, value):
    """Before anything of those sizes is allocated."""
    bundle = linked(tmp_path / "bundle")
    tree = document()
    for graphs in (tree["graphs"], tree["variants"]["fp32"]["graphs"]):
        graphs["lm_inference"]["inputs"][0][at] = value
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(BundleError, match=r"lm_inference\.onnx: input 'cod"):
        MusicGen.load(bundle)
