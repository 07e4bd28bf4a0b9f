"""Signals, and what killed processes leave: cleaned up, each by its own exit status; links and modes of outputs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clean_lm import atomic, console
from tests.support import ROOT

pytestmark = [pytest.mark.runtime, pytest.mark.quick]

WAIT = """
import pathlib, sys, time
from clean_lm import atomic, console

def body():
    with atomic.file(pathlib.Path(sys.argv[1])), atomic.folder(pathlib.Path(sys.argv[2])) as folder:
        (folder / "part").write_text("half")
        print("ready", flush=True)
        time.sleep(60)

sys.exit(console.run(body, (), "nothing was written"))
"""


def start(folder: Path) -> "subprocess.Popen[str]":
    """A process that is writing a file and a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT, folder / "out.wav", folder / "bundle"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_nothing(tmp_path, number, status):
    process = start(tmp_path)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (status, "interrupted: nothing was written\n")
    assert not list(tmp_path.iterdir())


def test_what_kill_9_leaves_is_removed_by_the_next_run(tmp_path):
    """But nothing of a process that lives, of another output, or of another's making."""
    killed, living = start(tmp_path), start(tmp_path)
    killed.kill()
    killed.communicate(timeout=60)
    others = [".other.wav.0123abcd.partial", ".out.wav.0123abcd.partial~", ".out.wav.XYZ.partial", "out.wav.partial"]
    for name in others:
        (tmp_path / name).write_text("not ours")
    (tmp_path / ".out.wav.0123abcd.partial").symlink_to(tmp_path / others[0])
    assert len(list(tmp_path.glob(".out.wav.*.partial"))) == 4
    with atomic.file(tmp_path / "out.wav") as file:
        file.write(b"new")
    with atomic.folder(tmp_path / "bundle"):
        pass
    assert len(list(tmp_path.glob(".bundle.*.partial"))) == 1
    assert len([path for path in tmp_path.glob(".out.wav.????????.partial") if not path.is_symlink()]) == 1
    assert all((tmp_path / name).read_text() == "not ours" for name in others)
    living.terminate()
    living.communicate(timeout=60)
    assert not list(tmp_path.glob(".bundle.*"))


def test_only_the_first_signal_interrupts():
    """A second one does not interrupt the cleaning up; handlers are as they were afterwards."""
    before, cleaned = signal.getsignal(signal.SIGTERM), []

    def body() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    assert console.run(body, (), "nothing") == 143
    assert cleaned
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_replaced_file_keeps_its_mode_and_its_link(tmp_path):
    target, link = tmp_path / "target.wav", tmp_path / "link.wav"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to("target.wav")
    with atomic.file(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_new_file_has_what_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic.file(tmp_path / "new.wav"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "new.wav").stat().st_mode & 0o777 == 0o640


def test_a_long_name_has_a_partial_file_too(tmp_path):
    path = tmp_path / ("é" * 120 + ".wav")
    with atomic.file(path) as file:
        file.write(b"x")
    assert path.read_bytes() == b"x"


def test_a_reader_that_has_gone(tmp_path):
    """Nothing is said: no traceback, and no complaint of Python at its end."""
    program = "import sys; from clean_lm import console; sys.exit(console.run(lambda: print('x' * 10**6), (), ''))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert (process.stderr.read(), process.wait(timeout=60)) == ("", 141)


def test_control_characters_are_shown():
    assert console.plain("a\x1b[31m\u202eé\udc80") == "a\\x1b[31m\\u202eé\\udc80"


def test_an_error_is_one_line(capsys):
    def body() -> None:
        raise ValueError("first\nsecond \x1b[2J")

    assert console.run(body, (ValueError,), "") == 1
    assert capsys.readouterr().err == "error: first second \\x1b[2J\n"
