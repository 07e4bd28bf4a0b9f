"""Play a loop's continuation while the rest of it is still being generated.

Run `make demo` first: it exports the demo's bundle.

  pip install sounddevice         once: without it, or without a sound card, the audio goes into a WAV file
  python examples/stream.py
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from clean_lm import MusicGen

ROOT = Path(__file__).parents[1]


def main() -> None:
    args = arguments()
    samples, rate = sf.read(args.input, dtype="float32", always_2d=True)
    model = MusicGen.load(args.bundle)
    model.set_generation_params(duration=args.duration, temperature=0.4)
    chunks = model.stream_continuation(samples.T, rate, ["drum and bass"], args.chunk_seconds, seed=1)
    out = sound_card(model.sample_rate, model.audio_channels)
    print("playing on the sound card" if out else f"no sound card: writing {args.output}")
    out = out or sf.SoundFile(args.output, "w", model.sample_rate, model.audio_channels)
    with out:
        for chunk in chunks:  # float32 [1, channels, samples]; a thread generates the next ones during this write
            out.write(np.ascontiguousarray(chunk[0].T))


def sound_card(rate: int, channels: int) -> Any | None:
    """An output stream; None without the sounddevice package, PortAudio or an output device."""
    try:
        import sounddevice  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError):  # OSError: the package is there, PortAudio is not
        return None
    try:
        return sounddevice.OutputStream(rate, channels=channels, dtype="float32")
    except sounddevice.PortAudioError:
        return None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "build" / "bundle")
    parser.add_argument("--input", type=Path, default=ROOT / "demo" / "loop.wav")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "stream.wav", help="without a sound card")
    parser.add_argument("--duration", type=float, default=10.0, help="seconds in all, the loop included")
    parser.add_argument("--chunk-seconds", type=float, default=0.5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
