"""What every command does at its end: signals, errors in one line, and a reader of its output that has gone."""

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn, TextIO

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Ctrl-C, kill, a terminal that is closed; Windows has no SIGHUP
BROKEN_PIPE = 141  # the status of a program that SIGPIPE ends


class Interrupted(KeyboardInterrupt):
    """A signal that asks the process to end: raised where it is, so that everything is cleaned up on the way."""

    def __init__(self, number: int):
        super().__init__()
        self.status = 128 + number


class Parser(argparse.ArgumentParser):
    """argparse's, which repeats what it does not understand: here cut, and without control characters."""

    def error(self, message: str) -> NoReturn:
        super().error(plain(message if len(message) <= 500 else f"{message[:500]}..."))


def run(body: Callable[[], object], errors: tuple[type[Exception], ...], interrupted: str) -> int:
    """Run a command; its exit status, see `command`. argparse's own, 2, is raised."""
    try:
        with command(errors, interrupted):
            body()
    except Ended as end:
        return end.status
    return 0


class Ended(SystemExit):
    """The end of a command that failed and has said so: as a text, what it said."""

    def __init__(self, status: int, said: str = ""):
        super().__init__(status)
        self.status, self.said = status, said

    def __str__(self) -> str:
        return self.said


@contextlib.contextmanager
def command(errors: tuple[type[Exception], ...], interrupted: str) -> Iterator[None]:
    """End a command with Ended in place of a traceback: 1 after one of `errors` or one of the system, which is printed
    in one line, 128 + the number of a signal, 141 where nobody reads the output.

    interrupted: what to say after a signal: "nothing was written".
    """
    forgiving_output()
    with signals():
        try:
            try:
                yield
            finally:
                flush()
        except BrokenPipeError:  # `| head`
            status, said = BROKEN_PIPE, ""
        except (*errors, OSError) as error:
            status, said = 1, f"error: {message(error)}"
        except MemoryError as error:
            status, said = 1, f"error: not enough memory ({message(error)}); ask for less at a time"
        except KeyboardInterrupt as error:
            said = f"interrupted: {interrupted}"
            status = error.status if isinstance(error, Interrupted) else 130
        else:
            return
    if said:
        say(said)
    discard_output()
    raise Ended(status, said)


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Raise Interrupted for the first signal; further ones do not interrupt the cleaning up.

    A signal that was ignored when the process started (nohup) stays ignored.
    """
    before: dict[int, Any] = {}

    def interrupt(number: int, _: FrameType | None) -> NoReturn:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise Interrupted(number)

    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def plain(text: object) -> str:
    """A text from a file, or a file's name, for a terminal: what it would obey rather than show is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def message(error: BaseException) -> str:
    """An error's message in one line."""
    return plain(" ".join(str(error).split()))  # ONNX Runtime's have several lines


def say(line: str) -> None:
    """One line on stderr, if there still is someone to read it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(line, file=sys.stderr, flush=True)


def flush() -> None:
    """Write what is printed now, while an error can still be reported."""
    if sys.stdout is not None:
        sys.stdout.flush()


def discard_output() -> None:
    """Where stdout takes nothing any more, have nothing tried again when Python ends."""
    try:
        flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def forgiving_output() -> None:
    """Characters that the terminal's encoding lacks are escaped, not an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIO) or hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
