"""Audio in and out: files, sample rates, channels, loudness, and the seam between a track and its continuation.

read -> convert_audio -> (the model) -> to_source -> splice -> write
"""

import math
import os
import secrets
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import soundfile as sf

ZEROS, ROLLOFF = 24, 0.945  # of the windowed sinc: zero crossings to a side, and the cutoff under Nyquist's
PHASES, WINDOW_FLOATS = 128, 2**19  # how much of a resampling is one matrix product
CHUNK = 65536  # frames read or written at once; libsndfile's Vorbis encoder overflows its stack on long arrays
KNOWN_LENGTH = 2**40  # libsndfile says 2^63 - 1 frames where a header does not tell

# extension: libsndfile's format, its subtype, and how the encoder is told to work
FORMATS = {
    ".wav": ("WAV", "PCM_16", {}),
    ".flac": ("FLAC", "PCM_16", {}),
    ".ogg": ("OGG", "VORBIS", {}),
    ".mp3": ("MP3", "MPEG_LAYER_III", {"bitrate_mode": "CONSTANT", "compression_level": 0.0}),  # 320 kbit/s
}
HEADROOM_DB = {"clip": 1.0, "peak": 1.0, "rms": 18.0, "loudness": 14.0}  # audiocraft's
QUIET = 2e-3  # RMS under which `loudness` leaves a wave alone, audiocraft's energy_floor

# K-weighting at 48 kHz, (b, a) of a shelf and a high-pass: ITU-R BS.1770-4, tables 1 and 2
K_WEIGHTING = (
    ((1.53512485958697, -2.69169618940638, 1.19839281085285), (1.0, -1.69065929318241, 0.73248077421585)),
    ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621)),
)
CHANNEL_WEIGHTS = {5: (1, 1, 1, 1.41, 1.41), 6: (1, 1, 1, 0, 1.41, 1.41)}  # L R C (LFE) Ls Rs; else all 1


class AudioError(ValueError):
    """Audio that cannot be used: says which, what was found and what to do."""


def check(wav: np.ndarray, name: str, dims: int | None = None) -> np.ndarray:
    """The wave as float32; AudioError unless it is [..., channels, samples] of finite floats, one at least."""
    wav = np.asarray(wav)
    if wav.dtype.kind != "f":
        raise AudioError(f"{name}: got {wav.dtype}, expected floats; divide int16 by 32768")
    if wav.ndim < 2 or (dims is not None and wav.ndim != dims):
        raise AudioError(f"{name}: got shape {list(wav.shape)}, expected [channels, samples]; for mono add [None]")
    if not wav.size:
        raise AudioError(f"{name}: no samples, shape {list(wav.shape)}; give audio that is not empty")
    if bad := int(np.count_nonzero(~np.isfinite(wav))):
        raise AudioError(f"{name}: {bad} of {wav.size} samples are NaN or infinite; render the audio again")
    return wav.astype(np.float32, copy=False)


# Rates and channels


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
    if channels < 1:
        raise AudioError(f"channels: got {channels}, expected 1 or more")
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

        input   |. . . . . . .|. . . . . . .|.      a period: `old` samples in, `new` out, the rates over their gcd
        output  |0   1   2    |0   1   2    |0      phase i of every period has the same kernel, so that
        windows  [---------]   [---------]          output[period, phase] = windows[period] @ kernels[phase]
    Raises AudioError.
    """
    if min(from_rate, to_rate) < 1 or from_rate != int(from_rate) or to_rate != int(to_rate):
        raise AudioError(f"sample rates: got {from_rate} and {to_rate}, expected whole numbers from 1 up")
    divisor = math.gcd(int(from_rate), int(to_rate))
    old, new = int(from_rate) // divisor, int(to_rate) // divisor
    samples = wav.shape[-1]
    if old == new:
        return wav
    if length is None:  # julius' length goes through float32: from 2^18 on, 0.99 may round up
        length = int(np.floor(np.float32(new * samples / old)))
    width, flat = math.ceil(ZEROS * old / (min(old, new) * ROLLOFF)), wav.reshape(-1, samples)
    group = max(1, PHASES // new)  # short periods are taken together
    old, new = old * group, new * group
    periods = math.ceil(length / new)
    if not periods:
        return wav[..., :0]
    padded = np.pad(flat, ((0, 0), (width, width + 1 + max(0, periods * old - samples))), mode="edge")
    output = np.empty((len(flat), periods, new), np.float32)
    for phase in range(0, new, PHASES):  # neighbouring phases share a window
        phases = np.arange(phase, min(phase + PHASES, new))
        first = phase * old // new
        inputs = np.arange(first - width, math.ceil(phases[-1] * old / new) + width + 1)
        kernels = sinc_kernels(phases, inputs, old // group, new // group, np.float64 if exact else np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(inputs), axis=1)[:, first::old]
        step = max(1, WINDOW_FLOATS // (len(inputs) * len(flat)))
        for period in range(0, periods, step):
            rows = np.ascontiguousarray(windows[:, period : min(period + step, periods)])
            output[:, period : period + step, phases[0] : phases[-1] + 1] = rows @ kernels
    return output.reshape(*wav.shape[:-1], -1)[..., :length]


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
    wav = convert_channels(check(wav, "generated audio", dims=2), source_channels)
    length = math.floor(wav.shape[1] * source_rate / rate + 0.5)
    try:
        import soxr
    except ImportError:
        return resample(wav, rate, source_rate, length, exact=True)
    if rate == source_rate:
        return wav
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
    source, generated = check(source, "source", dims=2), check(generated, "generated audio", dims=2)
    lead = seam_samples if lead_samples is None else lead_samples
    if len(source) != len(generated):
        raise AudioError(f"source has {len(source)} channels, generated {len(generated)}: give it to to_source first")
    if not 0 <= seam_samples <= source.shape[1]:
        raise AudioError(f"seam_samples: got {seam_samples}, expected 0 .. {source.shape[1]}, the source's length")
    if not 0 <= lead <= generated.shape[1]:
        raise AudioError(f"lead_samples: got {lead}, expected 0 .. {generated.shape[1]}, the length of what follows")
    if crossfade_samples < 0:
        raise AudioError(f"crossfade_samples: got {crossfade_samples}, expected 0 or more")
    fade = min(crossfade_samples, seam_samples, lead)
    rise = (np.arange(fade, dtype=np.float32) + 0.5) / max(fade, 1)
    before, after = source[:, seam_samples - fade : seam_samples], generated[:, lead - fade : lead]
    middle = before + rise * (after - before)  # where both are equal, their bits too
    return np.concatenate([source[:, : seam_samples - fade], middle, generated[:, lead:]], axis=1)


# Files


def read(
    path: Path | str, start: float = 0.0, seconds: float | None = None, from_end: bool = False
) -> tuple[np.ndarray, int]:
    """A part of an audio file -> (float32 [channels, samples], sample rate). Any format that libsndfile reads.

    The part begins `start` seconds into the file and lasts `seconds` (None: all the rest), or what there is of it.
    from_end: it ends `start` seconds before the file does. Only that part is read, except of MP3 and Ogg, which are
    decoded from the beginning: their lengths are estimates, and Ogg seeks wrongly near the end. Raises AudioError.
    """
    path = Path(path)
    if not 0 <= start < math.inf or (seconds is not None and not 0 < seconds < math.inf):
        raise AudioError(f"{path}: start {start}, seconds {seconds}: expected 0 or more, and more than 0")
    if not path.is_file():
        raise AudioError(f"{path}: {'not a file' if path.exists() else 'not found'}; give the path of an audio file")
    try:
        with path.open("rb") as file, open_sound(file) as audio:
            rate, found = audio.samplerate, audio.frames
            skip, wanted = round(start * rate), None if seconds is None else max(1, round(seconds * rate))
            if audio.format in ("MP3", "OGG") or found > KNOWN_LENGTH:
                wav, found = decode(audio, skip, wanted, from_end)
            else:
                begin, end = part(found, skip, wanted, from_end)
                audio.seek(begin)
                wav = audio.read(end - begin, dtype="float32", always_2d=True)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read: {error.strerror or error}; check the path and its rights") from None
    except (sf.LibsndfileError, TypeError) as error:  # TypeError: .raw, which has no header
        found = error.error_string if isinstance(error, sf.LibsndfileError) else str(error)
        raise AudioError(f"{path}: not readable as audio ({found}); convert it to WAV, or copy it again") from None
    if found and not len(wav):
        raise AudioError(f"{path}: {found / rate:.3f} s long, nothing is left after {start} s; give a smaller start")
    return check(np.ascontiguousarray(wav.T), str(path), dims=2), rate


def part(frames: int, skip: int, wanted: int | None, from_end: bool) -> tuple[int, int]:
    """Where in `frames` the part begins and ends."""
    if from_end:
        end = max(0, frames - skip)
        return 0 if wanted is None else max(0, end - wanted), end
    return min(skip, frames), frames if wanted is None else min(skip + wanted, frames)


def decode(audio: sf.SoundFile, skip: int, wanted: int | None, from_end: bool) -> tuple[np.ndarray, int]:
    """Decode from the beginning -> (the part, float32 [samples, channels]; frames decoded). Holds little more."""
    blocks: list[np.ndarray] = [np.zeros((0, audio.channels), np.float32)]
    dropped = seen = 0
    while from_end or wanted is None or seen < skip + wanted:
        block = np.asarray(audio.read(CHUNK, dtype="float32", always_2d=True), np.float32)
        if not len(block):
            break
        blocks.append(block)
        seen += len(block)
        begin, _ = part(seen, skip, wanted, from_end)
        while len(blocks) > 1 and dropped + len(blocks[0]) <= begin:
            dropped += len(blocks.pop(0))
    begin, end = part(seen, skip, wanted, from_end)
    return np.concatenate(blocks)[begin - dropped : end - dropped], seen


def open_sound(file: BinaryIO) -> sf.SoundFile:
    """libsndfile on an open file; an MP3 that does not tell its length is opened as one without end."""
    audio = sf.SoundFile(file)
    if audio.format == "MP3" and not tells_length(file):
        audio.close()
        return sf.SoundFile(cast(BinaryIO, Endless(file)))
    file.seek(0)
    return sf.SoundFile(file)


def tells_length(file: BinaryIO) -> bool:
    """Whether an MP3 begins with the Xing or Info frame that counts its frames."""
    file.seek(0)
    head = file.read(10)
    size = int("".join(f"{byte:07b}" for byte in head[6:]), 2) + 10 if head[:3] == b"ID3" else 0
    file.seek(size)
    head = file.read(4096)
    at = max(head.find(b"Xing"), head.find(b"Info"))
    return at >= 0 and bool(head[at + 7 : at + 8] and head[at + 7] & 1)  # flag 1: the count is there


class Endless:
    """A file that seems 64 times as long. libsndfile guesses the length of an MP3 without a count from its size and its
    first frame's bit rate, and stops there: a variable rate then lost 62 % of a file. Reading still ends at the end.
    """

    def __init__(self, file: BinaryIO):
        self.file, self.at, self.size = file, 0, file.seek(0, os.SEEK_END)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.size * 64)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int) -> bytes:
        """The file's bytes, nothing after its end, and zeros where the decoder looks for a tag: the last 128."""
        self.file.seek(self.at)
        data = self.file.read(size) if self.at < self.size * 64 - 128 else bytes(size)
        self.at += len(data)
        return data


def write(
    path: Path | str,
    wav: np.ndarray,
    sample_rate: int,
    strategy: str | None = None,
    headroom_db: float | None = None,
    compressor: bool = False,
    subtype: str | None = None,
) -> int:
    """Write float [channels, samples] as .wav, .flac (16 bit), .ogg or .mp3; returns how many samples were clipped.

    strategy, headroom_db, compressor: see `normalize`; None leaves the level as it is and clips at 1.
    subtype: libsndfile's name for another sample format of .wav and .flac, PCM_24 or FLOAT (never clipped).
    What `read` gave of a 16 or 24 bit file is written back bit for bit. The file appears whole or not at all.
    Raises AudioError where the format cannot hold the audio, OSError where the folder or the disk does not take it.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise AudioError(f"{path}: the extension is {path.suffix!r}, expected one of {', '.join(FORMATS)}")
    wav, clipped = normalize(check(wav, str(path), dims=2), sample_rate, strategy, headroom_db, compressor)
    file_format, default, options = FORMATS[path.suffix.lower()]
    subtype = subtype or default
    if subtype not in ("FLOAT", "DOUBLE"):
        clipped += int(np.count_nonzero(np.abs(wav) > 1))
        wav = np.clip(wav, -1, 1)
    memory = BytesIO()  # encoded here, as libsndfile does not say when a disk is full
    try:
        with sf.SoundFile(memory, "w", sample_rate, len(wav), subtype, format=file_format, **options) as file:
            for at in range(0, wav.shape[1], CHUNK):
                file.write(pcm(wav[:, at : at + CHUNK].T, subtype))
    except (sf.LibsndfileError, ValueError) as error:
        found = error.error_string if isinstance(error, sf.LibsndfileError) else str(error)
        audio = f"{len(wav)} channels at {sample_rate} Hz as {subtype}"
        raise AudioError(f"{path}: cannot hold {audio} ({found}); write .wav, or convert it first") from None
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with beside.open("xb") as file:
            file.write(memory.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return clipped


def pcm(wav: np.ndarray, subtype: str) -> np.ndarray:
    """Samples as the integers that `read` divided by 2^15 or 2^23, so that they come back bit for bit."""
    if subtype == "PCM_16":
        return np.clip(np.rint(wav * 2.0**15), -(2**15), 2**15 - 1).astype(np.int16)
    if subtype == "PCM_24":  # libsndfile takes the upper 24 of 32 bits
        return np.clip(np.rint(wav * 2.0**23), -(2**23), 2**23 - 1).astype(np.int32) << 8
    return wav


# Level


def normalize(
    wav: np.ndarray, sample_rate: int, strategy: str | None, headroom_db: float | None = None, compressor: bool = False
) -> tuple[np.ndarray, int]:
    """audiocraft's strategies on float32 [channels, samples] -> (wave, samples that `clip` clipped).

    clip: values are cut at -headroom (1 dB). peak: the largest goes to -headroom (1 dB).
    rms: the RMS of the mono mix goes to -headroom (18 dB). loudness: to -headroom LUFS (14), then `compressor` is tanh.
    Silence stays silence. Raises AudioError.
    """
    if strategy is None:
        return wav, 0
    if strategy not in HEADROOM_DB:
        raise AudioError(f"strategy: got {strategy!r}, expected one of {', '.join(HEADROOM_DB)} or None")
    level = -(HEADROOM_DB[strategy] if headroom_db is None else headroom_db)
    scale = 10 ** (level / 20)
    if strategy == "clip":
        return np.clip(wav, -scale, scale), int(np.count_nonzero(np.abs(wav) > scale))
    if strategy == "loudness":
        found = loudness(wav, sample_rate) if np.sqrt(np.mean(np.square(wav))) >= QUIET else -math.inf
        if found > -math.inf:
            wav = wav * np.float32(10 ** ((level - found) / 20))
        return np.tanh(wav) if compressor else wav, 0
    found = np.abs(wav).max() if strategy == "peak" else np.sqrt(np.mean(np.square(wav.mean(axis=0))))
    return wav * np.float32(scale / found) if found > 0 else wav, 0


def loudness(wav: np.ndarray, sample_rate: int) -> float:
    """Integrated loudness in LUFS of [channels, samples], after ITU-R BS.1770-4; -inf for silence.

    K-weighted by the response that the standard's 48 kHz filters have at each frequency, so at any rate. Power in
    blocks of 400 ms every 100 ms; blocks under -70 LUFS are left out, then those 10 LU under the mean of the rest.
    Audio shorter than a block is one.
    """
    samples = wav.shape[1]
    size = 1 << (samples + sample_rate - 1).bit_length()  # a second of silence, so that no tail wraps around
    hertz = np.minimum(np.fft.rfftfreq(size, 1 / sample_rate), 24000)
    z = np.exp(-2j * np.pi * hertz / 48000)
    response = np.ones_like(z)
    for b, a in K_WEIGHTING:
        response *= np.polynomial.polynomial.polyval(z, b) / np.polynomial.polynomial.polyval(z, a)
    block, hop = min(samples, round(0.4 * sample_rate)), max(1, round(0.1 * sample_rate))
    starts = np.arange(0, samples - block + 1, hop)
    power = np.zeros(len(starts))
    for channel, weight in zip(wav, CHANNEL_WEIGHTS.get(len(wav), (1,) * len(wav)), strict=True):
        weighted = np.fft.irfft(np.fft.rfft(channel, size) * response, size)[:samples]
        energy = np.concatenate([[0], np.cumsum(np.square(weighted))])
        power += weight * (energy[starts + block] - energy[starts]) / block
    power = power[power > lufs_to_power(-70)]
    power = power[power > 0.1 * power.mean()] if len(power) else power
    return -0.691 + 10 * math.log10(power.mean()) if len(power) else -math.inf


def lufs_to_power(lufs: float) -> float:
    """The weighted mean square that has this loudness."""
    return 10 ** ((lufs + 0.691) / 10)
