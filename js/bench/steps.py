"""Time steps of a bundle in Python, as js/bench/steps.js does in Node: reads requests as JSON lines, prints times."""

import json
import sys
import time

import numpy as np

from clean_lm.generation import Decoder
from clean_lm.language_model import LanguageModel

lm = LanguageModel.load(sys.argv[1], variant=sys.argv[2], hashes=False)
codes, uniform = np.zeros((1, lm.codebooks, 1), np.int64), np.full((1, lm.codebooks), 0.5, np.float32)
text = np.zeros((8, lm.text_dim), np.float32)
decoders: dict[bool, Decoder] = {}
for line in sys.stdin:
    request = json.loads(line)
    guided = request["guided"]
    if guided not in decoders:
        decoder = lm.decoder(1, request["capacity"], [text if guided else None], lm.sampling)
        assert isinstance(decoder, Decoder)
        decoders[guided] = decoder
    decoder, times = decoders[guided], []
    for _ in range(request["steps"]):
        decoder.filled = request["columns"]
        start = time.perf_counter()
        decoder.step(codes, uniform)
        times.append(1000 * (time.perf_counter() - start))
    print(json.dumps({"times": times}), flush=True)
