"""Sample with a method of your own: the decoder gives the logits of each step, and reads the codes that you choose.

Run `make demo` first: it exports the demo's bundle.

  python examples/own_sampler.py --min-p 0.1

min-p keeps the codes that are at least min_p times as probable as the most probable one. The graph has no such option;
it draws a code at every step all the same, which this program ignores.
"""

import argparse
from pathlib import Path

import numpy as np
import soundfile as sf

from clean_lm import MusicGen
from clean_lm.delay_pattern import UNKNOWN, delay, prefill_length, undelay
from clean_lm.language_model import LanguageModel

ROOT = Path(__file__).parents[1]


def main() -> None:
    args = arguments()
    samples, rate = sf.read(args.input, dtype="float32", always_2d=True)
    model = MusicGen.load(args.bundle)
    assert rate == model.sample_rate, "this example does not resample"
    prompt, text = model.codec.encode(samples.T[None]), ["drum and bass"]
    states = model.text.encode(text) if model.text else None  # of each text float32 [N, E]
    codes = generate(model.lm, prompt, states, round(args.duration * model.frame_rate), args.min_p)
    sf.write(args.output, model.codec.decode(codes)[0].T, model.sample_rate)
    print(f"{args.output}: {args.duration:g} s sampled with min-p {args.min_p:g}")


def generate(lm: LanguageModel, prompt: np.ndarray, states: list | None, frames: int, min_p: float) -> np.ndarray:
    """Continue codes int64 [1, K, P] to int64 [1, K, frames]."""
    rng = np.random.default_rng(1)
    columns = delay(prompt, lm.delays, frames, lm.special_token)  # [1, K, S]; UNKNOWN where a code is to be sampled
    decoder = lm.decoder(1, columns.shape[2], states, lm.sampling)  # guidance happens in the graph
    ignored = np.zeros((1, lm.codebooks), np.float32)  # what the graph's own draw would use
    first = prefill_length(prompt.shape[2], lm.delays)
    decoder.prefill(columns[:, :, :first], ignored)
    for s in range(first, columns.shape[2]):
        codes = sample(decoder.logits[0], min_p, rng)
        columns[0, :, s] = np.where(columns[0, :, s] == UNKNOWN, codes, columns[0, :, s])
        if s + 1 < columns.shape[2]:
            decoder.step(columns[:, :, s : s + 1], ignored)
    return undelay(columns, lm.delays)


def sample(logits: np.ndarray, min_p: float, rng: np.random.Generator) -> np.ndarray:
    """Logits [K, card] -> codes [K]: by the Gumbel-max trick, among those that min-p keeps."""
    kept = logits >= logits.max(axis=1, keepdims=True) + np.log(min_p)
    return np.where(kept, logits + rng.gumbel(size=logits.shape), -np.inf).argmax(axis=1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "build" / "bundle")
    parser.add_argument("--input", type=Path, default=ROOT / "demo" / "loop.wav", help="at the model's sample rate")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "own_sampler.wav")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds in all, the loop included")
    parser.add_argument("--min-p", type=float, default=0.1, help="above 0; 1 is greedy")
    return parser.parse_args()


if __name__ == "__main__":
    main()
