"""How far a graph is from what it was exported from: the numbers as values, and one line on them for print."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from export.bundle_writer import ExportError

TOLERANCE = 5e-5  # of the reference's largest value
SHARP = 4  # times PyTorch's own rounding error: a sharp model rounds more
PYTORCH = "the PyTorch modules"


@dataclass(frozen=True)
class Difference:
    """The largest difference from a reference, as a share of the reference's largest value."""

    name: str  # for print: "largest difference", "streamed audio"
    unit: str  # what it is a share of: "the largest state"
    ours: float
    tolerance: float
    pytorch: float | None = None  # the same of the PyTorch modules in the graph's own precision

    @property
    def agrees(self) -> bool:
        return self.ours <= self.tolerance


@dataclass(frozen=True)
class Verdict:
    """What a comparison found; it agrees where all of its differences are within their tolerances."""

    compared: str  # for print, what was compared: "texts of 20 and 7 tokens"
    differences: tuple[Difference, ...]
    reference: str = PYTORCH

    @property
    def agrees(self) -> bool:
        return all(difference.agrees for difference in self.differences)


@dataclass(frozen=True)
class Comparison:
    """One call of the language model: our logits beside a reference's."""

    case: str
    call: str
    max: float  # difference of logits
    mean: float
    relative: float  # max, as a share of the case's largest logit
    tolerance: float  # of relative
    pytorch: float  # relative of the PyTorch modules in the same precision; 0 where they were not run
    top5: float  # share of the reference's five best codes that are among ours
    tokens: float  # share of greedy codes that are equal

    @property
    def agrees(self) -> bool:
        return self.relative <= self.tolerance


def tolerance(rounding: float) -> float:
    """What may differ where the PyTorch modules themselves differ by `rounding` in the graph's precision."""
    return max(TOLERANCE, SHARP * rounding)


def against_pytorch(name: str, unit: str, ours: float, pytorch: float) -> Difference:
    """A difference that may be as large as the rounding of the PyTorch modules in the graph's precision allows."""
    return Difference(name, unit, ours, tolerance(pytorch), pytorch)


def largest_difference(
    ours: np.ndarray, pytorch: np.ndarray, exact: np.ndarray, unit: str, name: str = "largest difference"
) -> Difference:
    """Three arrays of one shape: the graph's, PyTorch's in the graph's precision, PyTorch's in float64."""
    largest = np.abs(exact).max()
    off, rounding = (float(np.abs(x - exact).max() / largest) for x in (ours, pytorch))
    return against_pytorch(name, unit, off, rounding)


def compare(
    case: str, prefill: int, ours: np.ndarray, reference: np.ndarray, pytorch: np.ndarray | None = None
) -> list[Comparison]:
    """Logits [calls, B, K, card], the first call a prefill of that many columns."""
    largest = float(np.abs(reference).max())
    own = np.zeros(len(ours)) if pytorch is None else np.abs(pytorch - reference).max((1, 2, 3)) / largest
    names = [f"prefill of {prefill}", *(f"step {i}" for i in range(1, len(ours)))]
    limit = tolerance(float(own.max()))
    calls = zip(names, ours.astype(np.float64), reference.astype(np.float64), own, strict=True)
    return [compare_call(case, name, x, y, largest, limit, float(rounding)) for name, x, y, rounding in calls]


def compare_call(
    case: str, call: str, ours: np.ndarray, reference: np.ndarray, largest: float, limit: float, pytorch: float
) -> Comparison:
    """Logits [B, K, card] of one call. largest: the case's largest logit."""
    off = np.abs(ours - reference)
    best, theirs = (np.argsort(-logits, axis=-1, kind="stable")[..., :5] for logits in (ours, reference))
    return Comparison(
        case,
        call,
        max=float(off.max()),
        mean=float(off.mean()),
        relative=float(off.max() / largest),
        tolerance=limit,
        pytorch=pytorch,
        top5=float((best[..., None] == theirs[..., None, :]).any(-1).mean()),
        tokens=float((best[..., 0] == theirs[..., 0]).mean()),
    )


def calls_verdict(calls: Sequence[Comparison], reference: str = PYTORCH) -> Verdict:
    """All calls that were compared with one reference; the worst of them decides."""
    worst = max(calls, key=lambda call: (not call.agrees, call.relative / call.tolerance))
    tokens = sum(call.tokens for call in calls) / len(calls)
    unit = f"the largest logit in {worst.case}, {worst.call}"
    difference = Difference("largest difference", unit, worst.relative, worst.tolerance, worst.pytorch or None)
    return Verdict(f"{len(calls)} calls, {tokens:.2%} of greedy tokens equal", (difference,), reference)


# For print


def line(verdict: Verdict) -> str:
    """One line, which begins with whether it agrees."""
    word = "agrees" if verdict.agrees else "DISAGREES"
    return f"{word} with {verdict.reference}: {verdict.compared}, {'; '.join(map(_number, verdict.differences))}"


def _number(d: Difference) -> str:
    own = "" if d.pytorch is None else f", PyTorch's own {d.pytorch:.1e}"
    return f"{d.name} {d.ours:.1e} of {d.unit} (tolerance {d.tolerance:.1e}{own})"


def table(calls: Sequence[Comparison]) -> list[str]:
    """The comparisons in columns; an arrow marks what disagrees."""
    heads = f"{'max':>9}{'mean':>10}{'of largest':>12}{'PyTorch':>10}{'top 5':>8}{'tokens':>8}"
    lines = [f"{'case':<12}{'call':<16}{heads}"]
    for c in calls:
        pytorch = f"{c.pytorch:.1e}" if c.pytorch else "-"
        numbers = f"{c.max:>9.1e}{c.mean:>10.1e}{c.relative:>12.1e}{pytorch:>10}{c.top5:>8.1%}{c.tokens:>8.1%}"
        lines.append(f"{c.case:<12}{c.call:<16}{numbers}{'' if c.agrees else '  <-'}")
    return lines


def require_agreement(verdicts: Mapping[str, Verdict]) -> list[str]:
    """A line on every part, by its name. Raises ExportError with all of them where one disagrees."""
    lines = [f"{part} {line(verdict)}".strip() for part, verdict in verdicts.items()]
    if not all(verdict.agrees for verdict in verdicts.values()):
        raise ExportError("nothing was written: the graphs do not compute what PyTorch does. " + "\n".join(lines))
    return lines
