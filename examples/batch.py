"""Continue every track of a folder with several texts, with `clean-lm batch`, and list what came of it.

Run `make demo` first: it exports the demo's bundle. Needs the extra: pip install '.[batch]'

  python examples/batch.py --input demo --texts "drum and bass" ambient
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]


def main() -> None:
    args = arguments()
    rows = [
        {"id": f"{track.stem}/{text}", "input": str(track.absolute()), "text": text}
        for track in sorted(args.input.glob("*.wav"))
        for text in args.texts
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    listed = args.output / "rows.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ["--bundle", args.bundle, "--prompt-seconds", 4, "--duration", args.duration, "--splice", "--resume"]
    command = [sys.executable, "-m", "clean_lm", "batch", listed, "-o", args.output / "audio", *options]
    subprocess.run(list(map(str, command)), check=True)
    for result in pq.read_table(args.output / "audio" / "results.parquet").to_pylist():
        (take,) = result["takes"]
        print(f"{take['file']}: seed {take['seed']}, new from {result['seam']:.2f} s on, peak {take['peak_db']:.1f} dB")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "build" / "bundle")
    parser.add_argument("--input", type=Path, default=ROOT / "demo", help="folder of tracks")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "batch")
    parser.add_argument("--texts", nargs="+", default=["drum and bass", "ambient"])
    parser.add_argument("--duration", type=float, default=10.0, help="seconds in all, the prompt included")
    return parser.parse_args()


if __name__ == "__main__":
    main()
