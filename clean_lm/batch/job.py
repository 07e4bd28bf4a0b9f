"""How a job is run, and how it ended: plain values, without Ray."""

from collections.abc import Callable
from dataclasses import dataclass

from clean_lm.batch.store import Result


@dataclass(frozen=True)
class Pool:
    """The workers of a job."""

    actors: int
    threads: int  # of each; CPUs, in Ray's words
    memory: int = 0  # bytes of each, by which Ray places them on machines
    gpus: float = 0.0  # of each
    rows: int = 8  # takes that one of them draws together, at most
    address: str | None = None  # of a cluster; None: this machine alone


@dataclass
class Ended:
    """How a job ended."""

    done: int = 0
    failed: int = 0
    left: int = 0  # neither
    interrupted: int = 0  # the signal
    too_many: bool = False  # failures


Report = Callable[[Ended, Result], None]  # after each row
