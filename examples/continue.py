"""Continue a loop, and write the loop and its continuation to a WAV file.

Run `make demo` first: it exports the demo's bundle.

  python examples/continue.py
  python examples/continue.py --bundle bundle --input track.wav --text "warm pads" --duration 30
"""

import argparse
from pathlib import Path

import soundfile as sf

from clean_lm import MusicGen

ROOT = Path(__file__).parents[1]


def main() -> None:
    args = arguments()
    samples, rate = sf.read(args.input, dtype="float32", always_2d=True)  # [samples, channels], any rate
    model = MusicGen.load(args.bundle)
    model.set_generation_params(duration=args.duration, temperature=args.temperature)
    audio = model.generate_continuation(samples.T, rate, [args.text], progress=True, seed=args.seed)
    sf.write(args.output, audio[0].T, model.sample_rate)
    print(f"{args.output}: {args.duration:g} s, of which the first {len(samples) / rate:g} s are {args.input.name}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "build" / "bundle")
    parser.add_argument("--input", type=Path, default=ROOT / "demo" / "loop.wav")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "continue.wav")
    parser.add_argument("--text", default="drum and bass", help="a description of the music")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds in all, the loop included")
    parser.add_argument("--temperature", type=float, default=0.4, help="the demo's model keeps the beat best at 0.4")
    parser.add_argument("--seed", type=int, default=1, help="the same seed is the same continuation")
    return parser.parse_args()


if __name__ == "__main__":
    main()
