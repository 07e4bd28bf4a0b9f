"""Continue a prompt of codes with a bundle: what an app's loop does between the codec's two halves.

python demo/generate.py --bundle bundle
"""

import argparse
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clean_lm.runtime import LanguageModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--prompt-frames", type=int, default=100)
    parser.add_argument("--frames", type=int, default=500, help="in all, the prompt included (default: 500)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    lm = LanguageModel.load(args.bundle)
    prompt = np.random.default_rng(args.seed).integers(0, lm.card, (1, lm.codebooks, args.prompt_frames))
    start = time.perf_counter()
    with tqdm(unit="column", disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        codes = lm.generate_codes(prompt, frames=args.frames, seed=args.seed, callback=progress)
    seconds = time.perf_counter() - start
    new = codes[:, :, args.prompt_frames :]
    print(
        f"{new.shape[2]} frames of {lm.codebooks} codes in {seconds:.2f} s, {1000 * seconds / new.shape[2]:.2f} ms each"
    )
    print(f"codebook 0 goes on: {' '.join(map(str, new[0, 0, :16]))} ...")


if __name__ == "__main__":
    main()
