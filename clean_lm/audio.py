"""Audio as arrays: sample rates and channels, and the seam between a track and its continuation.

read -> convert_audio -> (the model) -> to_source -> splice -> write
"""

import math
from typing import Any

import numpy as np

from clean_lm import memory
from clean_lm.options import integer, number, rate

ZEROS, ROLLOFF = 24, 0.945  # of the windowed sinc: zero crossings to a side, and the cutoff under Nyquist's
ONE, BATCH = "[channels, samples]", "[B, channels, samples]"  # the axes of one piece of audio, and of several
PCM_SCALES = {
    "int16": "divide int16 by 32768",
    "int32": "divide int32 by 2147483648",
    "uint8": "subtract 128 from uint8 and divide by 128",
}
CHANNELS = ("left", "right", "mix")
MOST_CHANNELS = 1024  # libsndfile's
MOST_RATIO = 1000  # to a thousandth of a rate: a kernel then has 51 000 samples
MOST_DB = 1000.0  # beyond it float32 is zero or overflows
MOST_GAIN_DB = 12.0  # how far a level is brought to another
NEAR_SILENCE = 1e-4  # RMS, -80 dB, under which there is no level to match
PHASES, WINDOW_FLOATS = 128, 2**19  # how much of a resampling is one matrix product


class AudioError(ValueError):
    """Audio that cannot be used: says which, what was found and what to do."""


def whole(name: str, value: Any, low: int = 0, high: int = 2**40) -> int:
    """A whole number of samples or channels. Raises AudioError."""
    try:
        return integer(name, value, low, high)
    except ValueError as error:
        raise AudioError(str(error)) from None


def decibels(name: str, value: Any) -> float:
    """A level or a gain. Raises AudioError."""
    try:
        return number(name, value, f"dB from -{MOST_DB:g} to {MOST_DB:g}", -MOST_DB, MOST_DB)
    except ValueError as error:
        raise AudioError(str(error)) from None


def require_rates(from_rate: Any, to_rate: Any) -> None:
    """Raise AudioError for rates that are none, or that are too far apart to resample."""
    try:
        rate("sample rates", from_rate)
        rate("sample rates", to_rate)
    except ValueError as error:
        raise AudioError(str(error)) from None
    if from_rate > to_rate * MOST_RATIO:
        raise AudioError(f"sample rates: got {from_rate} and {to_rate}, expected the second at least a {MOST_RATIO}th")


def require_memory(name: str, samples: int, bytes_each: int, advice: str) -> None:
    """Raise AudioError if this machine has not the memory for so many samples of all channels."""
    if (need := samples * bytes_each) > (there := memory.available()):
        found = f"{samples} samples need {memory.size(need)} of memory, this machine has {memory.size(there)} available"
        raise AudioError(f"{name}: {found}: {advice}")


def as_array(wav: Any, name: str) -> np.ndarray:
    """A numpy array of an array, of nested lists, or of a torch tensor on any device, whose gradient is left behind.

    Raises AudioError for lists of several lengths.
    """
    if hasattr(wav, "detach"):  # torch's, without importing it; numpy knows no bfloat16
        wav = wav.detach().cpu()
        wav = (wav.float() if wav.dtype.is_floating_point else wav).numpy()
    try:
        return np.asarray(wav)
    except (ValueError, TypeError) as error:  # numpy's "inhomogeneous shape", or a number of another kind
        raise AudioError(f"{name}: got lists of several lengths ({error}); cut them to one length") from None


def check(wav: Any, name: str, axes: str | None = None) -> np.ndarray:
    """The audio as float32: an array, nested lists or a torch tensor of floats. Raises AudioError.

    axes: "[channels, samples]" or "[B, channels, samples]"; None: any number of axes before the last two. Refused are
    integers, arrays with more channels than samples, which have their axes the other way round, and NaN.
    """
    wav = as_array(wav, name)
    if wav.dtype.kind != "f":
        scale = PCM_SCALES.get(str(wav.dtype), "divide PCM by its full scale: int16 by 32768")
        raise AudioError(f"{name}: got {wav.dtype}, expected floats; {scale}")
    if wav.ndim < 2 or (axes and wav.ndim != axes.count(",") + 1):
        expected = axes or ONE
        raise AudioError(f"{name}: got shape {list(wav.shape)}, expected {expected}; for mono add [None]")
    channels, samples = wav.shape[-2:]
    if channels > max(samples, 2) and samples:
        turned = [*wav.shape[:-2], samples, channels]
        turn = ".T" if wav.ndim == 2 else ".swapaxes(-1, -2)"
        raise AudioError(
            f"{name}: got shape {list(wav.shape)}, {channels} channels of {samples} samples; expected {axes or ONE}, "
            f"here {turned}: give {name}{turn} (soundfile reads [samples, channels]: .T)"
        )
    return check_samples(wav, name)


def check_samples(wav: np.ndarray, name: str) -> np.ndarray:
    """Floats as float32. Raises AudioError if there are none, or one is not finite."""
    if not wav.size:
        raise AudioError(f"{name}: no samples, shape {list(wav.shape)}; give audio that is not empty")
    with np.errstate(over="ignore"):
        wav = wav.astype(np.float32, copy=False)
    if bad := int(np.count_nonzero(~np.isfinite(wav))):
        raise AudioError(f"{name}: {bad} of {wav.size} samples are NaN or infinite; render the audio again")
    return wav


def as_batch(wav: Any, name: str) -> np.ndarray:
    """Prompts as float32 [B, channels, samples]: an array of that, one [channels, samples], or a list of the latter.

    Raises AudioError, for a list of several shapes too: the prompts of one call are columns of one batch.
    """
    if isinstance(wav, (list, tuple)) and any(hasattr(piece, "shape") for piece in wav):
        pieces = [check(piece, f"{name}[{number}]", ONE) for number, piece in enumerate(wav)]
        lengths, channels = [piece.shape[1] for piece in pieces], {len(piece) for piece in pieces}
        if len(channels) > 1:
            raise AudioError(f"{name}: got {sorted(channels)} channels in one list, expected one number of channels")
        if len(set(lengths)) > 1:
            raise AudioError(
                f"{name}: got lengths of {', '.join(map(str, lengths))} samples, expected one length: cut each to its "
                f"last {min(lengths)} samples (wav[:, -{min(lengths)}:]), or call once per prompt"
            )
        return np.stack(pieces)
    array = as_array(wav, name)
    return check(array, name, ONE)[None] if array.ndim == 2 else check(array, name, BATCH)


def convert_audio(wav: np.ndarray, from_rate: int, to_rate: int, to_channels: int) -> np.ndarray:
    """What audiocraft does to a prompt before the codec: float [..., channels, samples] -> float32.

    Channels first, so that only those that stay are resampled: the order changes nothing but rounding.
    Raises AudioError.
    """
    return resample(convert_channels(check(wav, "audio"), to_channels), from_rate, to_rate)


def convert_channels(wav: np.ndarray, channels: int) -> np.ndarray:
    """[..., c, samples] -> [..., channels, samples], as audiocraft: mean to mono, mono copied, else the first ones.

    Raises AudioError where more channels are wanted than there are, and there is more than one.
    """
    found = wav.shape[-2]
    whole("channels", channels, 1, MOST_CHANNELS)
    if channels == 1 and found > 1:
        return wav.mean(axis=-2, keepdims=True)
    if found == 1:
        return np.repeat(wav, channels, axis=-2)
    if channels > found:
        raise AudioError(f"audio has {found} channels, {channels} are wanted: mix it to mono or to {channels} first")
    return wav[..., :channels, :]


def resample(
    wav: np.ndarray, from_rate: int, to_rate: int, length: int | None = None, exact: bool = False
) -> np.ndarray:
    """Windowed-sinc resampling, float32 [..., samples] -> float32 [..., length].

    x(t) between samples is the sum of x[i] sinc(pi (i - t)), cut off at the lower rate's Nyquist and windowed by cos^2
    (J. O. Smith, Digital Audio Resampling), with julius' sizes: 24 zeros, rolloff 0.945, edges repeated, every kernel
    summing to 1. `length`: None for julius', floor(samples * to / from).
    `exact`: kernels from float64; without, from float32 as julius makes them, which is what the codec was trained on.
    Raises AudioError.
    """
    require_rates(from_rate, to_rate)
    divisor = math.gcd(int(from_rate), int(to_rate))
    old, new = int(from_rate) // divisor, int(to_rate) // divisor
    samples = wav.shape[-1]
    if old == new:
        return wav
    if length is None:  # julius' length goes through float32: from 2^18 on, 0.99 may round up
        length = int(np.floor(np.float32(new * samples / old)))
    if not length:
        return wav[..., :0]
    floats = wav.size + length * (wav.size // max(samples, 1))
    require_memory("audio", floats, 8, "cut it into parts, or give it at another rate")  # padded, and the output
    output = _interpolate(wav.reshape(-1, samples), old, new, length, np.float64 if exact else np.float32)
    return output.reshape(*wav.shape[:-1], -1)[..., :length]


def _interpolate(wav: np.ndarray, old: int, new: int, length: int, dtype: type[np.floating]) -> np.ndarray:
    """[rows, samples] at rate `old` -> [rows, length or a little more] at rate `new`, the rates over their gcd.

    input   |. . . . . . .|. . . . . . .|.      a period: `old` samples in, `new` out
    output  |0   1   2    |0   1   2    |0      phase i of every period has the same kernel, so that
    windows  [---------]   [---------]          output[period, phase] = windows[period] @ kernels[phase]
    """
    width = math.ceil(ZEROS * old / (min(old, new) * ROLLOFF))
    group = max(1, PHASES // new)  # short periods are taken together
    old, new = old * group, new * group
    periods = math.ceil(length / new)
    padded = np.pad(wav, ((0, 0), (width, width + 1 + max(0, periods * old - wav.shape[1]))), mode="edge")
    output = np.empty((len(wav), periods, new), np.float32)
    for phase in range(0, new, PHASES):  # neighbouring phases share a window
        phases = np.arange(phase, min(phase + PHASES, new))
        first = phase * old // new
        inputs = np.arange(first - width, math.ceil(phases[-1] * old / new) + width + 1)
        kernels = sinc_kernels(phases, inputs, old // group, new // group, dtype)
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(inputs), axis=1)[:, first::old]
        step = max(1, WINDOW_FLOATS // (len(inputs) * len(wav)))
        for period in range(0, periods, step):
            rows = np.ascontiguousarray(windows[:, period : min(period + step, periods)])
            output[:, period : period + step, phases[0] : phases[-1] + 1] = rows @ kernels
    return output


def sinc_kernels(phases: np.ndarray, inputs: np.ndarray, old: int, new: int, dtype: type[np.floating]) -> np.ndarray:
    """Weights of input samples [I] for output phases [P] -> float32 [I, P]. `dtype` is what they are computed in."""
    periods, phases = np.divmod(phases, new)
    t = (inputs[:, None] - periods * old).astype(dtype) / dtype(old) + (-phases / new).astype(dtype)
    t = np.clip(t * dtype(min(old, new) * ROLLOFF), -ZEROS, ZEROS) * dtype(math.pi)
    kernels = np.where(t == 0, 1, np.sin(t) / np.where(t == 0, 1, t)) * np.cos(t / ZEROS / 2) ** 2
    return (kernels / kernels.sum(axis=0)).astype(np.float32)


def to_source(wav: np.ndarray, rate: int, source_rate: int, source_channels: int) -> np.ndarray:
    """Bring generated audio back to the source's rate and channels: float [channels, samples] -> float32.

    Resampled by soxr (HQ) where it is installed, which keeps about 95 % of the band, else by the windowed sinc
    of `resample`, exact. Either way round(samples * source_rate / rate) samples come out. Raises AudioError.
    """
    require_rates(rate, source_rate)
    wav = convert_channels(check(wav, "generated audio", ONE), source_channels)
    length = math.floor(wav.shape[1] * source_rate / rate + 0.5)
    try:
        import soxr
    except ImportError:
        return resample(wav, rate, source_rate, length, exact=True)
    if rate == source_rate:
        return wav
    require_memory("generated audio", max(wav.size, length * len(wav)), 12, "give --rate codec, or a shorter duration")
    return np.ascontiguousarray(soxr.resample(wav.T, rate, source_rate, quality="HQ").T[:, :length])


def splice(
    source: np.ndarray,
    generated: np.ndarray,
    seam_samples: int,
    crossfade_samples: int,
    lead_samples: int | None = None,
) -> np.ndarray:
    """The source up to the seam, then what was generated: float [channels, n], [channels, m] -> float32.

        source     ------------------\\| seam_samples       the crossfade ends at the seam; before it the source's
        generated      --------------/|==================  bits stay as they are
                       | lead_samples |

    lead_samples: how many of generated's first samples lie before the seam (the prompt, decoded); None: seam_samples,
    both begin at the same moment. The result has seam_samples + m - lead_samples samples; a crossfade longer than
    either part before the seam is shortened to it. It is linear: the two sides are the same music, source and decoded
    prompt, so their amplitudes add; equal power would bulge by 3 dB in the middle. Raises AudioError.
    """
    source, generated = (
        check(source, "source", ONE),
        check(generated, "generated audio", ONE),
    )
    lead = seam_samples if lead_samples is None else lead_samples
    for name, samples in (
        ("seam_samples", seam_samples),
        ("lead_samples", lead),
        ("crossfade_samples", crossfade_samples),
    ):
        whole(name, samples)
    if len(source) != len(generated):
        raise AudioError(f"source has {len(source)} channels, generated {len(generated)}: give it to to_source first")
    if not 0 <= seam_samples <= source.shape[1]:
        raise AudioError(f"seam_samples: got {seam_samples}, expected 0 .. {source.shape[1]}, the source's length")
    if not 0 <= lead <= generated.shape[1]:
        raise AudioError(f"lead_samples: got {lead}, expected 0 .. {generated.shape[1]}, the length of what follows")
    fade = min(crossfade_samples, seam_samples, lead)
    rise = (np.arange(fade, dtype=np.float32) + 0.5) / max(fade, 1)
    before, after = source[:, seam_samples - fade : seam_samples], generated[:, lead - fade : lead]
    middle = before + rise * (after - before)  # where both are equal, their bits too
    return np.concatenate([source[:, : seam_samples - fade], middle, generated[:, lead:]], axis=1)


def match_level(source: np.ndarray, generated: np.ndarray, seam: int, lead: int, rate: int) -> float:
    """How many dB `generated` must gain to be as loud at the seam as the source: float [channels, n], [channels, m].

    Both have the prompt there, the source as it is and `generated` as the codec renders it, so that the RMS over all
    channels of the last second before the seam can be compared: source[:, :seam] and generated[:, :lead].
    At most MOST_GAIN_DB up or down; 0 where either is as good as silent.
    """
    samples = min(rate, seam, lead)
    if not samples:
        return 0.0
    wanted, found = rms(source[:, seam - samples : seam]), rms(generated[:, lead - samples : lead])
    if min(wanted, found) < NEAR_SILENCE:
        return 0.0
    return max(-MOST_GAIN_DB, min(MOST_GAIN_DB, 20 * math.log10(wanted / found)))


def amplify(wav: np.ndarray, gain_db: float) -> np.ndarray:
    """The audio, louder by so many dB. Raises AudioError."""
    decibels("gain_db", gain_db)
    return wav * np.float32(10 ** (gain_db / 20))


def rms(wav: np.ndarray) -> float:
    """The root of the mean square of all samples."""
    return float(np.sqrt(np.mean(np.square(wav, dtype=np.float64))))


def mix_loss(wav: np.ndarray) -> float:
    """By how many dB the mono mix of [channels, samples] is quieter than its channels on average, at most 120.

    0 for equal channels, 3 for two that have nothing in common, more where they cancel each other.
    """
    channels, mix = rms(wav), rms(wav.mean(axis=0))
    return min(120.0, max(0.0, 20 * math.log10(channels / mix))) if mix > channels * 1e-6 else 120.0 * (channels > 0)


def pick_channel(wav: np.ndarray, channel: str) -> np.ndarray:
    """[channels, samples] -> all of them ("mix"), or "left" or "right" alone [1, samples]. Raises AudioError."""
    if not isinstance(channel, str) or channel not in CHANNELS:
        raise AudioError(f"channel: got {channel!r}, expected one of {', '.join(CHANNELS)}")
    if channel == "mix":
        return wav
    if len(wav) < 2:
        raise AudioError(f"channel: got {channel!r}, expected mix: the audio has 1 channel")
    return wav[[CHANNELS.index(channel)]]


def fade_out(wav: np.ndarray, samples: int) -> np.ndarray:
    """The audio [channels, n], its last samples brought down to silence along half a period of a cosine.

    Raises AudioError unless 0 <= samples <= n.
    """
    if whole("fade_out", samples) > wav.shape[1]:
        raise AudioError(f"fade_out: got {samples} samples, expected 0 .. {wav.shape[1]}, the length of the audio")
    fall = 0.5 + 0.5 * np.cos(np.pi * (np.arange(samples) + 1) / max(samples, 1))
    return np.concatenate([wav[:, : wav.shape[1] - samples], wav[:, wav.shape[1] - samples :] * fall], axis=1).astype(
        np.float32
    )


def fade_in(wav: np.ndarray, samples: int) -> np.ndarray:
    """The audio [channels, n], its first samples brought up from silence: fade_out the other way round."""
    if whole("fade_in", samples) > wav.shape[1]:
        raise AudioError(f"fade_in: got {samples} samples, expected 0 .. {wav.shape[1]}, the length of the audio")
    return fade_out(wav[:, ::-1], samples)[:, ::-1]


def close_loop(wav: np.ndarray, samples: int, crossfade_samples: int) -> np.ndarray:
    """The first `samples` of audio [channels, n], so that they can be repeated without a click -> [channels, samples].

    What comes after them is faded out over their beginning, which is faded in: the last sample goes on as it did.
    The crossfade has equal power, as the two sides are different music; n >= samples + crossfade_samples, of which the
    latter are at most half of the loop. Raises AudioError.
    """
    fade = whole("crossfade_samples", crossfade_samples, 0, samples // 2)
    if samples + fade > wav.shape[1]:
        raise AudioError(f"loop: got {wav.shape[1]} samples, expected {samples} and {fade} more for the crossfade")
    looped = wav[:, :samples].astype(np.float32)
    looped[:, :fade] = equal_power(wav[:, samples : samples + fade], looped[:, :fade])
    return looped


def equal_power(ending: np.ndarray, beginning: np.ndarray) -> np.ndarray:
    """A crossfade of different music, both [channels, n]: the level stays where neither knows of the other."""
    samples = ending.shape[1]
    angle = (np.arange(samples, dtype=np.float32) + 0.5) / max(samples, 1) * (np.pi / 2)
    return ending * np.cos(angle) + beginning * np.sin(angle)


def whole_frames(prompt: np.ndarray, rate: int, codec_rate: int, hop: int, at_end: bool) -> np.ndarray:
    """The prompt [channels, samples] cut to whole frames of the codec, its last samples if `at_end`, else its first.

    The codec fills a part of a frame up with silence, which would be heard at the seam.
    """
    frames = prompt.shape[1] * codec_rate // (rate * hop)
    samples = frames * hop * rate // codec_rate or prompt.shape[1]
    return prompt[:, -samples:] if at_end else prompt[:, :samples]


def si_sdr(estimate: np.ndarray, reference: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, "SDR - half-baked or well done?")."""
    x, y = estimate.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    target = y * (x @ y) / max(y @ y, 1e-12)
    return float(10 * np.log10(max(target @ target, 1e-12) / max(((x - target) ** 2).sum(), 1e-12)))
