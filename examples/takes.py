"""Several continuations of one loop at once: the model reads the loop once and its weights once for all takes.

Run `make demo` first: it exports the demo's bundle.

  python examples/takes.py --takes 4
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
    model.set_generation_params(duration=args.duration, temperature=0.7)
    audio = model.generate_continuation(
        samples.T, rate, ["drum and bass"], progress=True, seed=args.seed, takes=args.takes
    )  # [takes, channels, samples]
    for number, take in enumerate(audio):
        output = args.output / f"take-{number + 1}.wav"
        sf.write(output, take.T, model.sample_rate)
        print(f"{output}: the continuation that seed {args.seed + number} gives by itself, too")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "build" / "bundle")
    parser.add_argument("--input", type=Path, default=ROOT / "demo" / "loop.wav")
    parser.add_argument("--output", type=Path, default=ROOT / "build", help="folder for take-1.wav, take-2.wav, ...")
    parser.add_argument("--takes", type=int, default=3)
    parser.add_argument("--duration", type=float, default=10.0, help="seconds in all, the loop included")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
