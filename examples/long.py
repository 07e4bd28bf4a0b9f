"""Generate more than the model was trained on: in windows, each of which begins with the end of the one before.

Run `make demo` first: it exports the demo's bundle.

  python examples/long.py --duration 60 --stride 18

0 s         18 s    30 s        48 s
|------------+-------|                     the first window: 30 s
             |=======|-----------|         the second: reads the 12 s that both share (=), and generates 18 s more
"""

import argparse
from pathlib import Path

import soundfile as sf

from clean_lm import MusicGen

ROOT = Path(__file__).parents[1]


def main() -> None:
    args = arguments()
    samples, rate = sf.read(args.input, dtype="float32", always_2d=True)
    model = MusicGen.load(args.bundle)
    model.set_generation_params(duration=args.duration, extend_stride=args.stride, temperature=0.4)
    audio = model.generate_continuation(samples.T, rate, ["drum and bass"], progress=True, seed=1)
    sf.write(args.output, audio[0].T, model.sample_rate)
    print(f"{args.output}: {args.duration:g} s in windows of {model.max_duration:g} s, one every {args.stride:g} s")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "build" / "bundle")
    parser.add_argument("--input", type=Path, default=ROOT / "demo" / "loop.wav")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "long.wav")
    parser.add_argument("--duration", type=float, default=45.0, help="seconds in all, the loop included")
    parser.add_argument("--stride", type=float, default=18.0, help="seconds from one window to the next")
    return parser.parse_args()


if __name__ == "__main__":
    main()
