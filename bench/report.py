"""Results as Markdown tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.contenders import NOT_INSTALLED
from bench.workload import GUIDED, NULL

GB, MB = 1e9, 1e6
QUIET = 0.05  # of the cores' time that other programs may take
LIBRARIES = ("onnxruntime", "openvino", "torch", "transformers", "audiocraft")
PEAK = "Peak: encode, prefill, caches filled to the last column, a few steps, and decode, not all steps. "


def markdown(results: Mapping[str, Any]) -> str:
    """The whole report, one section after the other."""
    sections = (about, step_tables, prefill_table, whole_table, takes_table, codec_table, process_table, goal_table)
    return "\n".join(line for section in sections for line in section(results)) + "\n"


def about(results: Mapping[str, Any]) -> Iterator[str]:
    """The machine, and how to read the rest."""
    m, w, summary = results["machine"], results["workload"], results["summary"]
    sets = ", ".join(m["instruction_sets"] or ["unknown"])
    caches = ", ".join(f"{name} {size}" for name, size in m["caches"].items())
    versions = ", ".join(f"{name} {m[name] or NOT_INSTALLED}" for name in LIBRARIES)
    yield f"# Benchmark: {results['size']} size, random weights"
    yield f"{m['cpu']}, {m['cores']} cores, {sets}; caches {caches or 'unknown'}; memory {_bytes(m['memory_bytes'])};"
    yield f"{m['system']}, Python {m['python']}; {versions}."
    yield ""
    yield (
        f"{w['rounds']} rounds; in each, every contender is measured once for every cell below, one after the other, "
        f"and each round begins with another contender. A cell is the median of {w['rounds']} x {w['steps']} "
        f"consecutive steps after {w['warm_steps']} that are not counted, elsewhere of {w['rounds']} calls. Weights "
        "and the contents of the caches are random: this measures speed, not sound."
    )
    if summary["bandwidth"]:
        yield (
            f"Memory is read at {summary['bandwidth'] / GB:.1f} GB/s: all cores summing one array of integers of "
            f"{_bytes(results['bandwidth_array_bytes'])}, beside the contenders of every cell of steps; the median."
        )
    if results["others"] is not None:
        yield (
            f"Other programs took {results['others']:.0%} of the cores' time meanwhile"
            + (": **measure again on a quiet machine**." if results["others"] > QUIET else ".")
        )
    for number, names in enumerate(results["groups"], 1):
        if len(results["groups"]) > 1:
            yield f"Group {number}, in memory together: {', '.join(names)}."
    for name in results["not_installed"]:
        yield f"{name}: {NOT_INSTALLED}."
    yield ""


def step_tables(results: Mapping[str, Any]) -> Iterator[str]:
    """A table for guided steps, and one for null text."""
    lengths = results["workload"]["lengths"]
    if "steps" not in results["workload"]["parts"]:
        return
    for mode in (GUIDED, NULL):
        found = {name: modes[mode] for name, modes in _everyone(results) if mode in modes and modes[mode]["step"]}
        yield f"## A step, {mode}"
        last = lengths[-1]
        heads = [f"{at} columns, ms" for at in lengths]
        compared = f"x {results['summary']['yardstick']} at {last}"
        yield from _head("contender", "rows", *heads, "growth", compared, f"MB read at {last}", "of bandwidth")
        for name, s in found.items():
            ratio, share = s["step_to_yardstick"].get(last), s["of_bandwidth"].get(last)
            cells = [_ms(s["step"].get(at)) for at in lengths]
            size = f"{s['read'][last] / MB:.0f}" if last in s["read"] else "-"
            yield _row(name, s["rows"], *cells, _number(s["growth"]), _number(ratio), size, _percent(share))
        yield from _absent(results, 5 + len(lengths))
        yield ""
    yield (
        "Growth: the longest cache's step over the shortest's. MB read: every weight that a step uses once, and the "
        "columns of its cache once; of bandwidth: that over the step's time, as a share of the rate at which memory "
        "was read beside that cell. Copies and second reads are not counted, so they lower the share."
    )
    yield ""


def prefill_table(results: Mapping[str, Any]) -> Iterator[str]:
    columns = results["workload"]["prefill"]
    if "prefill" not in results["workload"]["parts"]:
        return
    yield f"## Prefill of {columns} columns"
    yardstick = results["summary"]["yardstick"]
    yield from _head("contender", "guided, s", f"x {yardstick}", "null text, s", f"x {yardstick}")
    for name, modes in _everyone(results):
        cells = []
        for mode in (GUIDED, NULL):
            cell = modes.get(mode, {})
            cells += [_seconds(cell.get("prefill")), _number(cell.get("prefill_to_yardstick"))]
        yield _row(name, *cells)
    yield from _absent(results, 4)
    yield ""


def whole_table(results: Mapping[str, Any]) -> Iterator[str]:
    """The whole workload: measured, beside it extrapolated."""
    w = results["workload"]
    new = w["duration"] - w["prompt"]
    kinds = {"whole": "measured"} if w["full"] else {}
    kinds |= {"extrapolated": "extrapolated"} if {"steps", "prefill", "codec"} <= set(w["parts"]) else {}
    if not kinds:
        return
    yield f"## {w['prompt']:g} s in, {w['duration']:g} s out, encode and decode included"
    heads = [f"{how}, s" for how in kinds.values()]
    heads += [f"x real time over {w['duration']:g} s", f"over the {new:g} s that are new"]
    yield from _head("contender", *(f"{mode}: {head}" for mode in (GUIDED, NULL) for head in heads))
    for name, modes in _everyone(results):
        cells = [cell for mode in (GUIDED, NULL) for cell in _whole(modes.get(mode, {}), list(kinds))]
        if set(cells) != {"-"}:
            yield _row(name, *cells)
    yield from _absent(results, 2 * len(heads))
    yield ""
    first = next(iter(kinds.values()))
    if w["full"]:
        yield f"Measured: the median of {w['rounds']} generations of the whole length, one in each round."
    if "extrapolated" in kinds:
        yield (
            f"Extrapolated: encode + prefill + {w['workload_steps']} steps + decode, each of its median above. A "
            f"step's time between the sampled {', '.join(map(str, w['lengths']))} columns lies on the line through its "
            f"two neighbours, beyond the last on the last line; summed over {w['prefill']} to "
            f"{w['prefill'] + w['workload_steps'] - 1} columns."
        )
    yield f"Real time: of the {first} seconds."
    yield ""


def _whole(cell: Mapping[str, Any], kinds: Sequence[str]) -> Iterator[str]:
    """Seconds of each kind, and how many times real time the first is."""
    found = [cell.get(kind) for kind in kinds]
    for whole in found:
        yield "-" if whole is None else f"{whole['seconds']:.1f}"
    for key in ("real_time", "real_time_new"):
        yield _number(found[0][key] if found[0] else None)


def takes_table(results: Mapping[str, Any]) -> Iterator[str]:
    """Several takes together beside one."""
    takes, at = results["workload"]["takes"], results["workload"]["takes_columns"]
    mode = results["workload"]["takes_mode"]
    found = {name: modes[mode]["step"][at] for name, modes in _everyone(results) if mode in modes}
    if not found:
        return
    yield f"## {takes} null-text takes together, a step at {at} columns"
    yield from _head("contender", f"{takes} takes, ms", "one, ms", "ratio", "a take's share of one alone")
    for name, seconds in found.items():
        one = results["summary"]["contenders"][name].get(NULL, {}).get("step", {}).get(at)
        ratio = seconds / one if one else None
        yield _row(name, _ms(seconds), _ms(one), _number(ratio), _percent(ratio / takes if ratio else None))
    yield ""


def codec_table(results: Mapping[str, Any]) -> Iterator[str]:
    found, w = results["summary"]["codecs"], results["workload"]
    if not any(codec["encode"] or codec["decode"] for codec in found.values()):
        return
    yield "## Codec"
    yield from _head("codec of", f"encode {w['prompt']:g} s, s", f"decode {w['duration']:g} s, s")
    for name, codec in found.items():
        yield _row(name, _seconds(codec["encode"]), _seconds(codec["decode"]))
    yield ""


def process_table(results: Mapping[str, Any]) -> Iterator[str]:
    """Load time, memory, and the time to the first audio."""
    found = results["processes"]
    if not found:
        return
    chunk = next((f" of {s['stream']['chunk']:g} s" for s in found.values() if "stream" in s), "")
    yield "## In a fresh process, null text"
    heads = ("load, s", "resident after it", "peak of the workload", f"first chunk{chunk}, s", "first new music, s")
    yield from _head("contender", *heads)
    for name, process in found.items():
        memory, stream = process.get("memory", {}), process.get("stream", {})
        opened, peak = (_bytes(memory.get(key)) for key in ("opened", "peak"))
        load = _seconds(process["load"]) if process["load"] else "built, not loaded"
        yield _row(name, load, opened, peak, _seconds(stream.get("first")), _seconds(stream.get("new")))
    yield ""
    yield (
        "Load: language model and codec, files in the system's cache, importing libraries not counted. "
        + ("Peak: of the whole workload. " if results["workload"]["full"] else PEAK)
        + f"First chunk: from the prompt's samples to the first chunk{chunk} of MusicGen.stream_continuation; first "
        "new music: to the first chunk after the prompt. One process each."
    )
    yield ""


def goal_table(results: Mapping[str, Any]) -> Iterator[str]:
    yield "## Ratios"
    yield from _head("what", "ratio")
    for goal in results["summary"]["goals"]:
        yield _row(goal["what"], f"{goal['ratio']:.2f}")


def _everyone(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return list(results["summary"]["contenders"].items())


def _absent(results: Mapping[str, Any], cells: int) -> Iterator[str]:
    for name in results["not_installed"]:
        yield _row(name, NOT_INSTALLED, *[""] * (cells - 1))


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield "|---|" + "---:|" * (len(cells) - 1)


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.{1 if seconds >= 0.01 else 2}f}"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _bytes(size: int | None) -> str:
    if size is None:
        return "unknown"
    return f"{size / GB:.2f} GB" if size >= GB else f"{size / MB:.0f} MB"
