"""Time a bundle in Python, as js/bench/steps.js does in Node: prints ONNX Runtime's version, then answers requests with
times, in lines of JSON."""

import json
import sys
import time

import numpy as np
import onnxruntime as ort

from clean_lm import MusicGen
from clean_lm.generation import Decoder

model = MusicGen.load(sys.argv[1], variant=sys.argv[2], hashes=False)
lm = model.lm
codes, uniform = np.zeros((1, lm.codebooks, 1), np.int64), np.full((1, lm.codebooks), 0.5, np.float32)
text = np.zeros((8, lm.text_dim), np.float32)
decoders: dict[bool, Decoder] = {}


def steps(guided: bool, columns: int, capacity: int, steps: int) -> list[float]:
    """Milliseconds of single steps behind `columns` cached ones."""
    if guided not in decoders:
        decoder = lm.decoder(1, capacity, [text if guided else None], lm.sampling)
        assert isinstance(decoder, Decoder)
        decoders[guided] = decoder
    decoder, times = decoders[guided], []
    for _ in range(steps):
        decoder.filled = columns
        start = time.perf_counter()
        decoder.step(codes, uniform)
        times.append(1000 * (time.perf_counter() - start))
    return times


def whole(prompt: float, duration: float) -> list[float]:
    """Milliseconds to encode `prompt` seconds of a tone, continue it to `duration` without a text, and decode."""
    tone = 0.3 * np.sin(0.05 * np.arange(int(prompt * model.sample_rate), dtype=np.float32))
    model.set_generation_params(duration=duration)
    start = time.perf_counter()
    model.generate_continuation(np.tile(tone, (model.codec.channels, 1)), model.sample_rate, seed=1)
    return [1000 * (time.perf_counter() - start)]


print(json.dumps(ort.__version__), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    run = {"steps": steps, "whole": whole}[request.pop("run")]
    print(json.dumps({"times": run(**request)}), flush=True)
