"""Try hostile, broken and absurd inputs on clean_lm, and count what came of them.

  python -m tests.fuzz                                   200 inputs for each target, other seeds every day
  python -m tests.fuzz --rounds 1000 --seed 7            as many as that, always the same
  python -m tests.fuzz --target manifest --seed 7 --first 41 --rounds 1      one input again, with its traceback

Every input is refused in one line that says why, or accepted, and then equal to what the whole file gives where that is
known. Anything else is "other": a traceback, a wrong sound, too much time or memory, a process that ended. The exit
code is 1 where there is one. Inputs follow from the seed and their number alone.
"""

import argparse
import contextlib
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tests.fuzz.outcomes import ACCEPTED, OTHER, REFUSED, Outcome, attempt
from tests.fuzz.targets import TARGETS

CHUNK = 25  # inputs of one process's turn: where it ends, they are tried again one by one
ADDRESSES = 2**34  # bytes that a process may ask for, so that no input takes the machine down
Result = tuple[str, int, str, Outcome]  # target, number, what was done, what came of it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200, help="inputs for each target (default: 200)")
    parser.add_argument("--seed", type=int, default=time.time_ns() // (86400 * 10**9), help="default: that of the day")
    parser.add_argument("--first", type=int, default=0, help="the number of the first input (default: 0)")
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS), help="default: all")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    numbers = range(args.first, args.first + args.rounds)
    counts = {target: Counter[str]() for target in args.target}
    with tempfile.TemporaryDirectory(prefix="cache") as cache:
        os.environ["CLEAN_LM_CACHE"] = cache  # of every process: no hash is remembered in the user's
        for target, number, what, outcome in campaign(args.target, numbers, args.seed, args.processes):
            counts[target][outcome.kind] += 1
            if outcome.kind == OTHER:
                again = f"--target {target} --seed {args.seed} --first {number} --rounds 1"
                print(f"other: {again}\n  {what!r}\n  {outcome.message[:600]!r}", flush=True)
    print("\n".join(table(counts)))
    return 1 if any(count[OTHER] for count in counts.values()) else 0


def campaign(targets: Iterable[str], numbers: range, seed: int, processes: int = 1) -> Iterator[Result]:
    """Every input of every target, in processes of their own. Where one ends, the first of the inputs that are left is
    the cause: from then on, one process tries them in turn."""
    turns = [(target, numbers[i : i + CHUNK]) for target in targets for i in range(0, len(numbers), CHUNK)]
    while turns:
        with ProcessPoolExecutor(processes, initializer=bounded) as pool:
            futures = [(pool.submit(turn, *found, seed), found) for found in turns]
            turns, broken, alone = [], False, processes == 1
            for future, (target, part) in futures:
                try:
                    yield from future.result()
                except BrokenProcessPool:
                    processes, first, broken = 1, not broken, True
                    if first and alone and len(part) == 1:
                        yield target, part[0], "", Outcome(OTHER, "the process ended")
                    else:
                        turns += [(target, part[i : i + 1]) for i in range(len(part))] if first else [(target, part)]


def bounded() -> None:
    """Limit what this process can ask for."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))


def turn(target: str, numbers: range, seed: int) -> list[Result]:
    """Some inputs of one target."""
    return [one(target, number, seed) for number in numbers]


def one(target: str, number: int, seed: int) -> Result:
    """One input."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        case = TARGETS[target](random.Random(f"{target} {seed} {number}"), Path(folder))
        return target, number, case.what, attempt(case)


def table(counts: dict[str, Counter[str]]) -> list[str]:
    """The counts of every target."""
    rows = [f"{'target':20}{'tried':>8}{REFUSED:>10}{ACCEPTED:>10}{OTHER:>8}"]
    for target, count in counts.items():
        rows.append(f"{target:20}{count.total():8}{count[REFUSED]:10}{count[ACCEPTED]:10}{count[OTHER]:8}")
    total = sum(counts.values(), Counter[str]())
    rows.append(f"{'all':20}{total.total():8}{total[REFUSED]:10}{total[ACCEPTED]:10}{total[OTHER]:8}")
    return rows


if __name__ == "__main__":
    sys.exit(main())
