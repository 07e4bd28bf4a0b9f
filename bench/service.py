"""What the service costs beside the same continuation in a Python process, and how it holds under load.

  python -m bench.service --bundle build/bundle --input demo/loop.wav

Rounds: one continuation by the command line's own functions, one by the service, in turn. Then clients that send jobs
all at once, try again where they are answered with 429, and compare every result with the one that its seed has.
"""

import argparse
import base64
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from clean_lm import MusicGen, audio_files
from clean_lm.joining import finish
from clean_lm.request import Request, validate
from clean_lm.source import read_source
from clean_lm.takes import draw_takes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--duration", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--requests", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, base = start(args.bundle, Path(folder))
        try:
            overhead(args, base)
            load(args, base)
        finally:
            process.terminate()
            process.wait()


def start(bundle: Path, data: Path) -> tuple[subprocess.Popen[str], str]:
    """A service on a free port, and its address."""
    command = [sys.executable, "-m", "clean_lm", "serve", "--models", str(bundle), "--data", str(data), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"listening on (http://\S+)/", line):
            threading.Thread(target=list, args=[process.stderr], daemon=True).start()
            return process, found[1]
    raise SystemExit("the service did not start")


def fetch(url: str, body: dict[str, Any] | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        return response.read()


def post(base: str, track: str, seed: int, duration: float) -> str:
    """A job's id; waits while the queue is full."""
    body = {"input": track, "seed": seed, "duration": duration, "join": "rendered", "rate": "codec"}
    while True:
        try:
            return json.loads(fetch(f"{base}/v1/jobs", body))["id"]
        except urllib.error.HTTPError as error:
            if error.code != 429:
                raise
            time.sleep(0.2)


def result(base: str, job: str) -> bytes:
    """The first take, when it is done."""
    with urllib.request.urlopen(f"{base}/v1/jobs/{job}/events", timeout=600) as events:
        last = events.read().decode().rsplit("data: ", 1)[1]
    found = json.loads(last.split("\n", 1)[0])
    if found["status"] != "done":
        raise SystemExit(f"{job}: {found}")
    return fetch(base + found["result"]["takes"][0]["url"])


def plain(model: MusicGen, track: Path, seed: int, duration: float, out: Path) -> bytes:
    """The same continuation without the service."""
    asked = Request(input=track, seed=seed, duration=duration, rate="codec")
    asked = validate(asked, model.lm.manifest)
    source = read_source(asked, model.lm.manifest)
    done = finish(model, asked, source, draw_takes(model, asked, source, lambda *_: None))
    audio_files.write(out, done.takes[0].wav, done.rate, strategy="clip")
    return out.read_bytes()


def overhead(args: argparse.Namespace, base: str) -> None:
    """Seconds of both, in turn, and the first sound of the service."""
    track = base64.b64encode(args.input.read_bytes()).decode()
    model = MusicGen.load(args.bundle)
    ours, theirs, first = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(args.rounds + 1):
            begun = time.perf_counter()
            expected = plain(model, args.input, seed, args.duration, Path(folder) / "out.wav")
            middle = time.perf_counter()
            found = result(base, post(base, track, seed, args.duration))
            end = time.perf_counter()
            assert found == expected, f"seed {seed}: the service's result is another one"
            if seed:  # the first one loads
                theirs.append(middle - begun)
                ours.append(end - middle)
                first.append(first_sound(base, post(base, track, seed, args.duration)))
    a, b = statistics.median(theirs), statistics.median(ours)
    ratio = statistics.median(our / their for our, their in zip(ours, theirs, strict=True))
    print(f"{args.duration:g} s: plain {a:.3f} s, service {b:.3f} s, ratio {ratio:.3f} (medians of {args.rounds})")
    print(f"first new sound heard after {statistics.median(first):.2f} s")


def first_sound(base: str, job: str) -> float:
    """Seconds until a listener has the first half second of what is new; hears the job to its end."""
    begun = time.perf_counter()
    with urllib.request.urlopen(f"{base}/v1/jobs/{job}/stream?from=seam", timeout=600) as response:
        response.read(45)  # the header, and a sample
        found = time.perf_counter() - begun
        response.read()
    result(base, job)
    return found


def load(args: argparse.Namespace, base: str) -> None:
    """Clients at the same time; every result is the one of its seed."""
    track, seconds = base64.b64encode(args.input.read_bytes()).decode(), min(10.0, args.duration)
    seeds = range(10)
    expected = {seed: result(base, post(base, track, seed, seconds)) for seed in seeds}
    errors: list[str] = []

    def client(number: int) -> None:
        try:
            for k in range(args.requests // args.clients):
                seed = (number + k) % len(seeds)
                if result(base, post(base, track, seed, seconds)) != expected[seed]:
                    errors.append(f"seed {seed}: another result")
        except Exception as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=client, args=[number]) for number in range(args.clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - begun
    numbers = fetch(f"{base}/metrics").decode()
    memory = re.search(r"^process_resident_memory_bytes (\S+)$", numbers, re.M)
    files = re.search(r"^process_open_fds (\S+)$", numbers, re.M)
    megabytes, rate = float(memory[1]) / 1e6 if memory else 0, args.requests / taken
    print(f"{args.requests} jobs of {seconds:g} s from {args.clients} clients in {taken:.1f} s: {rate:.2f} jobs/s,")
    print(f"{rate * seconds:.1f} x real time; {megabytes:.0f} MB, {files[1] if files else '?'} files open")
    print(f"errors: {errors or 'none'}")


if __name__ == "__main__":
    main()
