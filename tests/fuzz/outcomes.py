"""One input of the campaign is tried: refused in one line, accepted, or something that must not happen."""

import contextlib
import io
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

SECONDS, MEGABYTES = 20, 600  # that one input may take, on a busy machine; no target's file has more than 3 MB
REFUSED, ACCEPTED, OTHER = "refused", "accepted", "other"


@dataclass(frozen=True)
class Case:
    """An input: what to do with it, the errors that refuse it, and whether it may be accepted.

    run: raises, or returns why its result is wrong; None if it is right.
    """

    run: Callable[[], str | None]
    errors: tuple[type[BaseException], ...]
    what: str  # was done to the input, for the report


@dataclass(frozen=True)
class Outcome:
    kind: str
    message: str = ""


def attempt(case: Case) -> Outcome:
    """Try one input, within bounds of time and memory."""
    before, start = _peak(), time.perf_counter()
    outcome = _attempt(case)
    seconds, grown = time.perf_counter() - start, _peak() - before
    if seconds > SECONDS or grown > MEGABYTES:
        return Outcome(OTHER, f"took {seconds:.1f} s and {grown:.0f} MB: {outcome}")
    return outcome


def _attempt(case: Case) -> Outcome:
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(stderr), _alarm():
            wrong = case.run()
    except SystemExit as error:
        return _exit(error.code, stderr.getvalue())
    except case.errors as error:
        return _refusal(str(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome(OTHER, f"{type(error).__name__}: {error}")
    return Outcome(OTHER, wrong) if wrong else Outcome(ACCEPTED)


def _exit(code: Any, printed: str) -> Outcome:
    """A command that ended: "error: ..." in one line, or argparse's usage with its last line."""
    if isinstance(code, str):
        return _refusal(code)
    lines = [line for line in printed.splitlines() if line]
    if code in (0, None):
        return Outcome(ACCEPTED)
    return _refusal(lines[-1]) if lines and "Traceback" not in printed else Outcome(OTHER, f"exit {code}: {printed}")


def _refusal(message: str) -> Outcome:
    """Where a checkpoint differs in several fields or tensors, each has its line."""
    lines = message.splitlines()
    if not lines or not all(line.isprintable() for line in lines) or len(message) > 20_000:
        return Outcome(OTHER, f"not printable in a few lines: {message[:300]!r}")
    return Outcome(REFUSED, message)


def _peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError(f"more than {2 * SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(2 * SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
