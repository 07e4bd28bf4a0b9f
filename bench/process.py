"""Measures one contender in a process of its own: `python -m bench.process JOB ...`, run by the benchmark, prints JSON.

memory   opens a contender, runs its prefill, fills its caches, takes some steps, decodes everything
whole    opens a contender and runs the whole workload
stream   opens a bundle and streams the workload up to the first chunk after the prompt
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import contenders, machine, ours
from bench.contenders import Files
from bench.workload import NULL, REFERENCE, Mode

CHUNK_SECONDS = 1.0
STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("memory", "whole", "stream"))
    parser.add_argument("--contender", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--growing", type=Path, required=True)
    parser.add_argument("--openvino", type=Path, required=True)
    args = parser.parse_args()
    files = Files(args.checkpoint, args.bundle, args.growing, args.openvino)
    run = stream if args.job == "stream" else memory
    print(json.dumps(run(files, args.contender, args.job == "whole")))


def memory(files: Files, name: str, whole: bool) -> dict[str, Any]:
    """Seconds to open a contender and its codec, and bytes of memory after that and after the null-text workload."""
    kind, _, variant = name.partition(" ")
    start = time.perf_counter()
    contender = contenders.entries(files, [kind], {kind: [variant]}, REFERENCE)[0].open()
    load = time.perf_counter() - start
    opened = machine.resident()
    if kind in contenders.BUILT:
        machine.forget_peak()  # building them from a checkpoint is no part of their own loading
    mode, model = Mode(NULL, text=False, takes=1), ours.sizes(files.bundle)
    if whole:
        contender.continue_audio(mode, model.prompt(REFERENCE.prompt), REFERENCE)
    else:
        contender.coder.encode(model.prompt(REFERENCE.prompt))
        contender.prefill(mode, REFERENCE.prefill(model))
        step = contender.seek(mode, REFERENCE.capacity(model) - STEPS - 1)
        for _ in range(STEPS):
            step()
        contender.coder.decode(model.codes(1, REFERENCE.frames(model)[1]))
    return {"load": load, "opened": opened["resident"], "peak": machine.resident()["peak"]}


def stream(files: Files, name: str, whole: bool) -> dict[str, Any]:
    """Seconds to open a bundle, to its first chunk of audio, and to the first one after the prompt."""
    model = ours.sizes(files.bundle)
    start = time.perf_counter()
    music = ours.music(files.bundle, name.removeprefix(contenders.OURS).strip())
    opened = time.perf_counter()
    music.duration = REFERENCE.duration
    prompt, times = model.prompt(REFERENCE.prompt)[0], []
    chunks = music.stream_continuation(prompt, model.sample_rate, chunk_seconds=CHUNK_SECONDS, seed=0)
    for chunk in chunks:
        assert np.isfinite(chunk).all()
        times.append(time.perf_counter() - opened)
        if len(times) * CHUNK_SECONDS > REFERENCE.prompt:
            break
    return {"load": opened - start, "first": times[0], "new": times[-1], "chunk": CHUNK_SECONDS}


if __name__ == "__main__":
    main()
