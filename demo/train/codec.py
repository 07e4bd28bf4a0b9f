"""Train the demo's codec on synthesised loops: EnCodec's modules as clean_lm has them, a waveform and a spectral loss.

No discriminator. Codebooks are moving averages of what they quantise (van den Oord et al. 2017, "Neural Discrete
Representation Learning", A.1); one that is hardly used starts again at a latent of the batch (Defossez et al. 2022).
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from clean_lm.models.config import CodecConfig
from clean_lm.models.encodec import DecoderLayers, Encoder, StandardRecurrence
from clean_lm.models.quantizer import negative_distance
from demo.train.trainer import Settings, initialise, train

CONFIG = CodecConfig(
    sample_rate=32_000, channels=1, ratios=(8, 5, 4, 4), filters=12, dimension=64, kernel_size=7, last_kernel_size=7,
    residual_kernel_size=3, residual_layers=1, dilation_base=2, compress=2, lstm_layers=1, pad_mode="constant",
    codebooks=4, card=512,
)  # fmt: skip
WINDOWS = (2048, 512, 128)  # samples, of the spectral loss
FLOOR, QUIET = 1e-2, 2e-3  # of a magnitude: about 60 dB under a full sine, and 75
SLOW = 8  # samples that are one for the decoder's waveform loss: about 2 kHz
ON_FRAME = 0.75  # share of the crops that begin on one
DECAY, DEAD = 0.98, 0.3  # of the moving averages; uses a step under which a code starts again


class Codec(nn.Module):
    """Both halves, and the codebooks between them."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.encoder, self.decoder = Encoder(config, StandardRecurrence()), DecoderLayers(config, StandardRecurrence())
        initialise(self)
        del self.decoder.codebooks  # the encoder's are used
        self.encoder.codebooks.requires_grad_(False)
        shape = config.codebooks, config.card
        self.uses = nn.Buffer(torch.zeros(shape))
        self.sums = nn.Buffer(torch.zeros(*shape, config.dimension))

    def forward(self, audio: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """audio [B, 1, samples], whole frames -> the decoded audio, the commitment loss. With a generator, the
        codebooks learn."""
        with torch.autocast("cpu", torch.bfloat16):
            latent = self.encoder.latent(audio)
        latent = latent.float()
        left, commitment = rearrange(latent, "b d t -> (b t) d"), audio.new_zeros(())
        for k, table in enumerate(self.encoder.codebooks):
            if generator is not None:
                self.learn(k, left.detach(), generator)
            quantised = F.embedding(negative_distance(left[None], table)[0].argmax(dim=-1), table)
            commitment = commitment + F.mse_loss(left, quantised)
            left = left - quantised
        rest = rearrange(left, "(b t) d -> b d t", b=len(audio))
        with torch.autocast("cpu", torch.bfloat16):
            x = self.decoder.first(latent - rest.detach())  # the gradient goes past the quantiser
            x, _ = self.decoder.lstm(x, self.decoder.lstm.start(x))
            decoded = self.decoder.sound(x)
        return decoded.float(), commitment

    @torch.no_grad()
    def learn(self, k: int, vectors: Tensor, generator: torch.Generator) -> None:
        """Move codebook k to the vectors [N, D] that it quantises."""
        table, uses, sums = self.encoder.codebooks[k], self.uses[k], self.sums[k]
        codes = negative_distance(vectors[None], table)[0].argmax(dim=-1)
        uses.mul_(DECAY).add_(torch.bincount(codes, minlength=len(table)), alpha=1 - DECAY)
        sums.mul_(DECAY).index_add_(0, codes, vectors, alpha=1 - DECAY)
        table.copy_(sums / uses.clamp(min=1e-5)[:, None])
        dead = uses < DEAD * len(vectors) / len(table) * (1 - DECAY)
        drawn = torch.randint(len(vectors), (int(dead.sum()),), generator=generator)
        table[dead] = sums[dead] = vectors[drawn]
        uses[dead] = 1.0


def spectral_loss(ours: Tensor, theirs: Tensor, floor: float = FLOOR) -> Tensor:
    """Log-magnitudes' mean difference and spectral convergence, over WINDOWS: waves [B, samples]. Source: Yamamoto et
    al. 2020, "Parallel WaveGAN", equations 3 to 6."""
    total = ours.new_zeros(())
    for window in WINDOWS:
        a, b = (magnitudes(wave, window) for wave in (ours, theirs))
        total = total + (torch.log(a + floor) - torch.log(b + floor)).abs().mean() + (a - b).norm() / b.norm()
    return total / len(WINDOWS)


def magnitudes(waves: Tensor, window: int) -> Tensor:
    """Waves [B, samples] -> [B, window / 2 + 1, columns]."""
    hann = torch.hann_window(window)
    spectrum = torch.stft(waves, window, window // 4, window=hann, normalized=True, return_complex=True)
    return torch.view_as_real(spectrum).square().sum(-1).clamp(min=1e-12).sqrt()


def fit(
    loops: np.ndarray, folder: Path, settings: Settings, config: CodecConfig = CONFIG, seconds: float = 0.64
) -> Codec:
    """Train on crops of loops int16 [N, samples]; goes on where folder/codec.pt was left."""
    torch.manual_seed(settings.seed)
    codec = Codec(config)

    def loss(step: int) -> tuple[Tensor, str]:
        audio = crops(loops, settings, step, round(seconds * config.frame_rate) * config.hop)
        decoded, commitment = codec(audio, torch.Generator().manual_seed(step))
        error = decoded - audio
        wave, spectrum = error.abs().mean() + error.square().mean().sqrt(), spectral_loss(decoded[:, 0], audio[:, 0])
        power = float(error.detach().square().mean() / audio.square().mean())
        line = f"SNR {-10 * math.log10(power):5.2f} dB, spectral {spectrum:.3f}, commitment {commitment:.4f}"
        return 10 * wave + 2 * spectrum + commitment, line

    train(codec, loss, folder / "codec.pt", settings)
    return codec.eval()


def finish(
    codec: Codec, loops: np.ndarray, folder: Path, settings: Settings, hop: int = CONFIG.hop, frames: int = 32
) -> Codec:
    """Train the decoder alone; the codes stay. The waveform loss is low-passed: hats and snares are noise, whose
    waveform no code describes, and a decoder that has to match it leaves them out."""
    codec.encoder.requires_grad_(False)

    def loss(step: int) -> tuple[Tensor, str]:
        audio = crops(loops, settings, step, frames * hop)
        decoded, _ = codec(audio)
        low = F.avg_pool1d(decoded, SLOW, SLOW // 2) - F.avg_pool1d(audio, SLOW, SLOW // 2)
        wave, spectrum = low.abs().mean() + low.square().mean().sqrt(), spectral_loss(decoded[:, 0], audio[:, 0], QUIET)
        return 10 * wave + 2 * spectrum, f"slow wave {wave:.4f}, spectral {spectrum:.3f}"

    train(codec.decoder, loss, folder / "decoder.pt", settings)
    return codec.eval()


def crops(loops: np.ndarray, settings: Settings, step: int, samples: int) -> Tensor:
    """A batch of crops, drawn by the step: float [B, 1, samples]. Most begin on a frame, as the loops' hits do."""
    rng = np.random.default_rng((settings.seed, 2, step))
    rows, starts = (rng.integers(n, size=settings.batch) for n in (len(loops), loops.shape[1] - samples))
    starts -= np.where(rng.random(settings.batch) < ON_FRAME, starts % CONFIG.hop, 0)
    cut = np.stack([loops[row, start : start + samples] for row, start in zip(rows, starts, strict=True)])
    return torch.from_numpy(cut).float()[:, None] / 32768 * rng.uniform(0.5, 1.1)
