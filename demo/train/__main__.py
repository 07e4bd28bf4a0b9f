"""Train the demo's model from scratch: loops, a codec, a text encoder, a language model, the loop to continue.

  python -m demo.train                       all of it, into demo/; hours on one core
  python -m demo.train --out build/tiny --loops 12 --codec-steps 2 --lm-steps 2

An interrupted run continues from --work. The seed is fixed: the same machine makes the same files.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import weights.codec
from clean_lm import audio_files
from clean_lm.models.encodec import Encoder, StandardRecurrence
from demo.train import codec, lm, synth, text
from demo.train.trainer import Settings
from demo.train.upstream import write_codec, write_lm
from weights.mapping import fill

ROOT = Path(__file__).parents[2]
SEED = 0
CODEC = Settings(steps=5000, batch=8, rate=1e-3, warmup=100, betas=(0.8, 0.99), decay=0.01, seed=SEED)
DECODER = Settings(steps=1500, batch=8, rate=1e-3, warmup=20, betas=(0.8, 0.99), decay=0.01, seed=SEED + 1)
LM = Settings(steps=9000, batch=8, rate=1.5e-3, warmup=50, betas=(0.9, 0.95), decay=0.05, seed=SEED)
FURTHER = replace(LM, steps=3400, rate=1e-3, seed=SEED + 1)
SECONDS = 12.0  # of a loop
PROMPT = 2_000_013  # the seed of the demo's own loop; those from 0 on are trained on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "demo", help="folder of the checkpoints (default: demo)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "train", help="default: build/train")
    parser.add_argument("--loops", type=int, default=4000)
    parser.add_argument("--codec-steps", type=int, default=CODEC.steps)
    parser.add_argument("--decoder-steps", type=int, default=DECODER.steps)
    parser.add_argument("--lm-steps", type=int, default=LM.steps)
    parser.add_argument("--further-steps", type=int, default=FURTHER.steps)
    parser.add_argument("--batch", type=int, default=LM.batch, help=f"sequences of a step (default: {LM.batch})")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch (default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for folder in (args.out, args.work):
        folder.mkdir(parents=True, exist_ok=True)
    make(args)


def make(args: argparse.Namespace) -> None:
    """Make all parts in turn, each from the files of those before it."""
    loops, kinds = synth.render(args.work, args.loops, SECONDS)

    trained = codec.fit(loops, args.work, replace(CODEC, steps=args.codec_steps, batch=args.batch))
    trained = codec.finish(trained, loops, args.work, replace(DECODER, steps=args.decoder_steps, batch=args.batch))
    path = args.out / "compression_state_dict.bin"
    write_codec(path, codec.CONFIG, trained.state_dict())

    text.write(args.out / "t5", SEED)
    texts = text.Texts.load(args.out / "t5")

    stored = weights.codec.load(path)  # the codes are those of the file, whose weights are rounded
    encoder = fill(Encoder(stored.config, StandardRecurrence()), stored.weights("encoder"))
    codes = lm.encode(encoder, loops, SEED, args.work / "codes.npy")
    model = lm.fit(codes, kinds, texts, args.work, replace(LM, steps=args.lm_steps, batch=args.batch))
    further = replace(FURTHER, steps=args.further_steps, batch=args.batch)
    model = lm.fit(codes, kinds, texts, args.work, further, before=model)
    write_lm(args.out / "state_dict.bin", lm.CONFIG, model.state_dict())

    audio_files.write(args.out / "loop.wav", prompt().wave[None], synth.RATE)
    print(f"wrote {args.out / 'loop.wav'}")


def prompt() -> synth.Loop:
    """The loop that the demo continues."""
    return synth.loop(PROMPT, 4.0, "drum and bass", 1)


if __name__ == "__main__":
    main()
