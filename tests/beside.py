"""A plugin of pytest's that runs another command beside the tests: `pytest -p tests.beside --beside COMMAND`.

Its output comes in one piece before pytest's summary, and the run fails if it fails. A shell's `&` would not do: what
it starts ignores Ctrl-C, which some of the tests are about.
"""

import subprocess
import tempfile
from typing import IO

import pytest

STARTED = pytest.StashKey[tuple[subprocess.Popen[bytes], IO[bytes]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--beside", metavar="COMMAND", help="a shell's command that must succeed beside the tests")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the command: once, not in each of pytest-xdist's workers."""
    if (command := session.config.getoption("beside")) and not hasattr(session.config, "workerinput"):
        output = tempfile.TemporaryFile()  # noqa: SIM115 - open until the tests have run
        process = subprocess.Popen(command, shell=True, stdout=output, stderr=subprocess.STDOUT)
        session.stash[STARTED] = process, output


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Wait for the command, print what it wrote, and fail if it failed."""
    if STARTED not in session.stash:
        return
    process, output = session.stash[STARTED]
    status = process.wait()
    with output:
        output.seek(0)
        written = output.read().decode(errors="replace")
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    assert isinstance(reporter, pytest.TerminalReporter)
    reporter.write_line(f"\n\n{process.args}\n{written.rstrip()}\nended with exit status {status}")
    if status and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
