"""The command that runs beside the tests: what it prints comes before pytest's last line, and its failure counts."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.docs

TESTS = "def test_passes():\n    pass\ndef test_fails():\n    raise SystemError\n"


def run(folder: Path, command: str, chosen: str, *options: str) -> tuple[int, list[str]]:
    """The exit status and the lines of a run with a command beside it."""
    (folder / "test_both.py").write_text(TESTS)
    where = ["--rootdir", folder, "-c", "/dev/null", "-p", "tests.beside", "-k", chosen, folder]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *where, "--beside", command, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    ("status", "chosen", "expected", "options"),
    [(0, "passes", 0, []), (3, "passes", 1, ["-n", "2"]), (0, "fails", 1, []), (3, "fails", 1, [])],
)
def test_either_failure_fails_the_run(tmp_path, status, chosen, expected, options):
    command = f"sleep 1; echo to stdout; echo to stderr >&2; exit {status}"
    returned, lines = run(tmp_path, command, chosen, *options)
    assert returned == expected
    at = lines.index(command)
    assert lines[at + 1 : at + 4] == ["to stdout", "to stderr", f"ended with exit status {status}"]
    assert lines.count("to stdout") == 1
    assert " in " in lines[-1]
    assert {"passes": "1 passed", "fails": "1 failed"}[chosen] in lines[-1]


def test_it_heeds_ctrl_c(tmp_path):
    """As a shell's `&` would not let it."""
    command = f"{sys.executable} -c 'import signal; print(signal.getsignal(signal.SIGINT))'"
    returned, lines = run(tmp_path, command, "passes")
    assert returned == 0
    assert any("default_int_handler" in line for line in lines)
