"""A file is read through once: when it is read again, and what damage, races and full disks do to the memory of it."""

import hashlib
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clean_lm import cli, verified
from clean_lm.manifest import BundleError, Manifest
from tests.support import ROOT

pytestmark = [pytest.mark.quick, pytest.mark.runtime]

BUNDLE = ROOT / "tests/golden/conformance/bundles/text"
NAME = "lm_inference.onnx.data"
TICK = 0.03  # seconds in which the clock of any file system here moves on


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where hashes are remembered: a folder that is not there yet."""
    monkeypatch.setenv("CLEAN_LM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "verified.json"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were just written are remembered, too."""
    monkeypatch.setattr(verified, "SETTLED", 0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read through, in turn."""
    names: list[str] = []
    digest = hashlib.file_digest

    def counted(file, algorithm):
        names.append(Path(file.name).name)
        return digest(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return names


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    copied = tmp_path / "bundle"
    shutil.copytree(BUNDLE, copied)
    time.sleep(TICK)
    return copied


def check(bundle: Path, hashes: bool | str = True) -> None:
    Manifest.read(bundle, hashes=hashes).check_files([NAME])  # pyright: ignore[reportArgumentType]


def flip(path: Path) -> None:
    """Change one bit in place."""
    time.sleep(TICK)
    with path.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)[0]
        file.seek(100)
        file.write(bytes([byte ^ 1]))


def test_tests_leave_the_users_cache_alone(monkeypatch):
    chosen = verified.cache_folder()
    monkeypatch.delenv("CLEAN_LM_CACHE")
    assert chosen != verified.cache_folder()


@pytest.mark.usefixtures("cache", "settled")
def test_a_file_is_read_through_once(bundle, reads):
    check(bundle)
    assert reads == [NAME]
    check(bundle)
    check(bundle.parent / "bundle" / ".." / "bundle")
    assert reads == [NAME]
    check(bundle, "again")
    check(bundle)
    assert reads == [NAME] * 2
    check(bundle, False)
    assert reads == [NAME] * 2


def in_place(path: Path) -> None:
    flip(path)


def in_place_at_the_old_time(path: Path) -> None:
    """As `touch -d` sets it: ctime alone differs."""
    status = path.stat()
    flip(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def another_file_of_the_same_time(path: Path) -> None:
    """As `cp -p` and `mv` do it."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    flip(other)
    shutil.copystat(path, other)
    other.replace(path)


def a_link_to_another(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    flip(other)
    path.unlink()
    path.symlink_to(other)


def mapped_into_memory(path: Path) -> None:
    time.sleep(TICK)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[100] ^= 1
        memory.flush()


CHANGES = [in_place, in_place_at_the_old_time, another_file_of_the_same_time, a_link_to_another, mapped_into_memory]


@pytest.mark.usefixtures("cache", "settled")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_file_is_refused(bundle, change: Callable[[Path], None]):
    check(bundle)
    change(bundle / NAME)
    for _ in range(2):
        with pytest.raises(BundleError, match=rf"{NAME}: sha256 is"):
            check(bundle)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("field", range(5), ids=["device", "inode", "size", "mtime", "ctime"])
def test_any_difference_is_read_again(bundle, cache, reads, field):
    check(bundle)
    entries = json.loads(cache.read_bytes())
    entries[str((bundle / NAME).resolve())][field] -= 1
    cache.write_text(json.dumps(entries))
    check(bundle)
    check(bundle)
    assert reads == [NAME] * 2


@pytest.mark.usefixtures("cache", "settled")
def test_another_manifest_is_compared_with_the_file(bundle, reads):
    """A file may be shared by bundles, and what is remembered is no manifest's."""
    check(bundle)
    tree = json.loads((bundle / "manifest.json").read_text())
    tree["files"][NAME]["sha256"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(BundleError, match=f"manifest.json says {'0' * 64}"):
        check(bundle)
    assert reads == [NAME] * 2


def test_a_file_that_was_just_written_is_not_remembered(bundle, cache, reads, monkeypatch):
    """It may be changed again before the clock of the file system moves on."""
    check(bundle)
    assert not cache.exists()
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3 * 10**9)
    check(bundle)
    assert cache.exists()
    check(bundle)
    assert reads == [NAME] * 2


@pytest.mark.usefixtures("settled")
def test_a_file_that_changes_while_it_is_read_is_not_remembered(bundle, cache, monkeypatch):
    digest = hashlib.file_digest

    def slowly(file, algorithm):
        found = digest(file, algorithm)
        flip(bundle / NAME)
        return found

    monkeypatch.setattr(hashlib, "file_digest", slowly)
    check(bundle)
    assert not cache.exists()
    monkeypatch.undo()
    with pytest.raises(BundleError, match="sha256 is"):
        check(bundle)


@pytest.mark.usefixtures("settled")
def test_a_forged_entry_passes_and_again_refuses_it(bundle, cache, capsys):
    """Not covered: silent damage on the disk, and an attacker who writes to the user's cache folder. Both
    look like a file that has not changed."""
    check(bundle)
    path = bundle / NAME
    flip(path)
    entries, status = json.loads(cache.read_bytes()), path.stat()
    entries[str(path.resolve())][3:5] = status.st_mtime_ns, status.st_ctime_ns
    cache.write_text(json.dumps(entries))
    check(bundle)
    with pytest.raises(BundleError, match="sha256 is"):
        check(bundle, "again")
    assert cli.main(["info", str(bundle)]) == 0
    assert cli.main(["info", str(bundle), "--verify"]) == 1
    assert f"{NAME}: sha256 is" in capsys.readouterr().err


@pytest.mark.usefixtures("cache", "settled")
def test_a_program_that_keeps_a_file_mapped_is_seen_by_again(bundle):
    """Linux may leave the times as they are while a page waits to be written to the disk."""
    path = bundle / NAME
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[100] ^= 1
        memory[100] ^= 1
        time.sleep(TICK)
        check(bundle)
        memory[100] ^= 1
        with pytest.raises(BundleError, match="sha256 is"):
            check(bundle, "again")


BROKEN = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(b'{"/a": [1, 2'),
    "binary": lambda path: path.write_bytes(bytes(range(256))),
    "list": lambda path: path.write_bytes(b"[1, 2]"),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "other": lambda path: path.write_bytes(b'{"/a": 1, "/b": {"c": null}}'),
    "large": lambda path: path.write_text(json.dumps({"/a": "a" * verified.LARGEST})),
    "pipe": os.mkfifo,
    "dangling": lambda path: path.symlink_to(path.with_name("nowhere")),
}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("make", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_replaced(bundle, cache, reads, make):
    cache.parent.mkdir()
    make(cache)
    check(bundle)
    check(bundle)
    assert reads == [NAME]
    assert str((bundle / NAME).resolve()) in json.loads(cache.read_bytes())
    assert cache.stat().st_size < 10_000


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("kind", ["file", "folder", "full", "homeless"])
def test_a_cache_that_cannot_be_written_is_done_without(bundle, cache, reads, monkeypatch, kind):
    if kind == "file":
        cache.parent.write_bytes(b"")
    elif kind == "folder":
        cache.mkdir(parents=True)
    elif kind == "full":
        monkeypatch.setenv("CLEAN_LM_CACHE", "/proc/clean_lm")
    else:
        monkeypatch.delenv("CLEAN_LM_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", homeless)
    check(bundle)
    check(bundle)
    assert reads == [NAME] * 2
    flip(bundle / NAME)
    with pytest.raises(BundleError, match="sha256 is"):
        check(bundle)


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.usefixtures("settled")
def test_what_was_read_longest_ago_is_forgotten(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(verified, "MOST", 3)
    files = [tmp_path / f"{i}" for i in range(5)]
    for file in files:
        file.write_bytes(b"")
    time.sleep(TICK)
    empty = hashlib.sha256(b"").hexdigest()
    for file in [*files, files[2]]:
        assert verified.sha256(file, empty, again=file == files[2]) == empty
    assert [Path(name).name for name in json.loads(cache.read_bytes())] == ["3", "4", "2"]


WRITER = """
import sys, hashlib, pathlib
from clean_lm import verified
verified.SETTLED = 0
empty = hashlib.sha256(b"").hexdigest()
for i in range(40):
    assert verified.sha256(pathlib.Path(sys.argv[1], f"{sys.argv[2]}{i}"), empty) == empty
    assert verified._remembered()
"""


def test_two_processes_at_once(tmp_path, cache):
    """One may forget what the other has just remembered, and no more."""
    for i in range(40):
        (tmp_path / f"a{i}").write_bytes(b"")
        (tmp_path / f"b{i}").write_bytes(b"")
    cache.parent.mkdir()
    cache.write_text(json.dumps({f"/somewhere/else/{i}": [0] * 50 for i in range(900)}))
    time.sleep(TICK)
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    writers = [subprocess.Popen([*command, name], env=environment) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    names = {Path(name).name for name in json.loads(cache.read_bytes())}
    assert names & {"a39", "b39"}
    assert list(cache.parent.iterdir()) == [cache]


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, "/home/me/.cache/clean_lm"),
        ("linux", {"XDG_CACHE_HOME": "/big/cache"}, "/big/cache/clean_lm"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/clean_lm"),
        ("linux", {"XDG_CACHE_HOME": "/big/cache", "CLEAN_LM_CACHE": "/own"}, "/own"),
        ("darwin", {"XDG_CACHE_HOME": "/big/cache"}, "/home/me/Library/Caches/clean_lm"),
        ("win32", {"LOCALAPPDATA": "/data/local"}, "/data/local/clean_lm"),
        ("win32", {}, "/home/me/AppData/Local/clean_lm"),
    ],
)
def test_where_it_is(monkeypatch, platform, variables, expected):
    for name in ("CLEAN_LM_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    assert verified.cache_folder() == Path(expected)


@pytest.mark.parametrize("hashes", ["no", "Again", 1, None, ["again"]])
def test_hashes_is_one_of_three(hashes):
    with pytest.raises(ValueError, match=r'hashes: got .*, expected True or False, or "again"'):
        check(BUNDLE, hashes)
