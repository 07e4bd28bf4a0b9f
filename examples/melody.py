"""Follow a melody: musicgen-melody takes its chroma (which of the 12 pitch classes sounds when), and a text.

  python examples/melody.py       by default on a tiny model of random weights: what you hear is noise
  python examples/melody.py --bundle melody --input vocals.wav --text "slow house" --duration 30

A melody bundle is one that was exported from a melody checkpoint; a text needs its --text encoder. audiocraft separates
the stems of the input first and drops drums and bass; here, pass the stems that carry the melody.
"""

import argparse
from pathlib import Path

import soundfile as sf

from clean_lm import MusicGen

ROOT = Path(__file__).parents[1]
RANDOM = ROOT / "tests" / "golden" / "conformance" / "bundles" / "melody"


def main() -> None:
    args = arguments()
    samples, rate = sf.read(args.input, dtype="float32", always_2d=True)
    model = MusicGen.load(args.bundle)
    model.set_generation_params(duration=args.duration)
    audio = model.generate_with_chroma([args.text], [samples.T], rate, progress=True, seed=1)
    sf.write(args.output, audio[0].T, model.sample_rate)
    print(f"{args.output}: {args.duration:g} s{' of noise: random weights' if args.bundle == RANDOM else ''}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=RANDOM)
    parser.add_argument("--input", type=Path, default=ROOT / "demo" / "loop.wav", help="the melody")
    parser.add_argument("--output", type=Path, default=Path("melody.wav"))
    parser.add_argument("--text", help="a description of the music")
    parser.add_argument("--duration", type=float, default=5.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
