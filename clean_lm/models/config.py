"""The sizes of every module as frozen dataclasses. weights/ fills them from a checkpoint; no field has a default."""

import math
from dataclasses import dataclass

PAD_MODES = ("constant", "reflect")


class ConfigError(ValueError):
    """A configuration that these modules do not implement, or that lacks a field they need."""


# The largest sizes that are read: far above any model's, and small enough to make lists and tables of.
MOST = {
    **{"layers": 1000, "heads": 1000, "head_dim": 10_000, "dim": 100_000, "hidden": 1_000_000, "hidden_scale": 1000},
    **{"codebooks": 256, "card": 1_000_000, "delay": 10_000, "text_dim": 100_000, "vocab": 10_000_000},
    **{"buckets": 10_000, "max_distance": 1_000_000, "sample_rate": 1_000_000, "seconds": 86_400, "hop": 1_000_000},
    **{"output_dim": 100_000, "features": 100_000, "levels": 256, "bins": 1_000_000, "ds_factor": 10_000},
    **{"chroma": 1000, "chroma_samples": 2**24, "convolutions": 32, "channels": 100_000, "kernel": 10_000},
    **{"position_kernel": 10_000, "position_groups": 10_000, "ratios": 16, "ratio": 10_000, "filters": 10_000},
    **{"dimension": 100_000, "kernel_size": 1000, "last_kernel_size": 1000, "residual_kernel_size": 1000},
    **{"residual_layers": 32, "dilation_base": 100, "compress": 10_000, "lstm_layers": 32, "reach": 1_000_000},
}
SHORTEST = 1e-3  # seconds


def require_size(name: str, value: int, prefix: str = "") -> None:
    """Raise ConfigError for a size that is below 1, or above MOST."""
    if value < 1:
        raise ConfigError(f"{prefix}{name} {value}: expected a number above 0")
    if value > MOST[name]:
        raise ConfigError(f"{prefix}{name} {value}: expected at most {MOST[name]}")


def _require_sizes(config: object, *names: str, prefix: str = "") -> None:
    """Raise ConfigError for the first of these fields that is no size."""
    for name in names:
        require_size(name, getattr(config, name), prefix)


def _require_seconds(name: str, value: float) -> None:
    """Raise ConfigError for a duration that is not above 0, is not finite, or is longer than a day."""
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} {value}: expected a number of seconds above 0")
    if not SHORTEST <= value <= MOST["seconds"]:
        raise ConfigError(f"{name} {value}: expected {SHORTEST:g} to {MOST['seconds']} seconds")


@dataclass(frozen=True)
class MelodyConfig:
    """The conditioner of a melody model, chroma: the strongest pitch class of every frame of a melody."""

    chroma: int  # pitch classes
    radix2_exp: int  # samples of a frame, as a power of 2
    sample_rate: int
    duration: float  # seconds of melody in the prefix: shorter ones are repeated, longer ones cut
    output_dim: int  # the language model's width

    @property
    def n_fft(self) -> int:
        """Samples of a frame."""
        return 2**self.radix2_exp

    @property
    def hop(self) -> int:
        """Samples from one frame's middle to the next."""
        return self.n_fft // 4

    @property
    def frames(self) -> int:
        """Frames of the duration, which counts as one frame's length where it is shorter than that."""
        return 1 + max(int(self.sample_rate * self.duration), self.n_fft) // self.hop

    def validate(self) -> None:
        """Raise ConfigError if a size is out of range."""
        _require_sizes(self, "sample_rate", "output_dim", prefix="self_wav ")
        if self.chroma < 2:
            raise ConfigError(f"self_wav chroma {self.chroma}: expected 2 pitch classes or more")
        if not 2 <= self.radix2_exp <= 20:
            raise ConfigError(f"self_wav radix2_exp {self.radix2_exp}: expected a number from 2 to 20")
        _require_sizes(self, "chroma", prefix="self_wav ")
        if self.chroma * self.n_fft > MOST["chroma_samples"]:
            raise ConfigError(
                f"self_wav chroma {self.chroma}, radix2_exp {self.radix2_exp}: expected at most "
                f"{MOST['chroma_samples']} for chroma x 2^radix2_exp"
            )
        _require_seconds("self_wav duration", self.duration)


@dataclass(frozen=True)
class StyleConfig:
    """The conditioner of a style model: a transformer and a residual quantizer over an excerpt's MERT features."""

    features: int  # width of the features
    dim: int
    heads: int
    layers: int
    levels: int  # codebooks of the residual quantizer
    bins: int  # vectors of a codebook
    eval_q: int  # how many levels a generation uses by default: fewer keep less of the style
    ds_factor: int  # every ds_factor-th frame is kept
    length: float  # seconds of the excerpt
    sample_rate: int
    output_dim: int  # the language model's width

    @property
    def hidden(self) -> int:
        """The feed-forward's width."""
        return 4 * self.dim

    def validate(self) -> None:
        """Raise ConfigError if sizes are out of range or contradict each other."""
        _require_sizes(self, "features", "dim", "heads", "layers", "levels", prefix="self_wav ")
        _require_sizes(self, "ds_factor", "sample_rate", "output_dim", prefix="self_wav ")
        if self.bins < 2:
            raise ConfigError(f"self_wav bins {self.bins}: expected 2 vectors or more")
        if not 1 <= self.eval_q <= self.levels:
            raise ConfigError(f"self_wav eval_q {self.eval_q}: expected a number from 1 to n_q_out, {self.levels}")
        _require_sizes(self, "bins", prefix="self_wav ")
        _require_seconds("self_wav length", self.length)


@dataclass(frozen=True)
class LMConfig:
    """The language model."""

    layers: int
    heads: int
    dim: int
    hidden_scale: int  # the feed-forward's width over dim
    codebooks: int
    card: int  # codes of a codebook
    delays: tuple[int, ...]  # columns by which each codebook lags
    text_dim: int  # width of the text encoder's states
    text_encoder: str  # its name, "t5-base"
    max_duration: float  # seconds of audio that the model was trained on: one window
    solver: str  # "musicgen" or "audiogen": whose generation defaults apply
    sample_rate: int
    channels: int
    cross: tuple[str, ...]  # conditioners that cross-attention reads
    prepend: tuple[str, ...]  # conditioners that are prepended: the prefix
    self_wav: MelodyConfig | StyleConfig | None  # the conditioner of that name: the one that takes audio

    @property
    def special_token(self) -> int:
        """The token of an empty place in the delay pattern: one past the last code."""
        return self.card

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def hidden(self) -> int:
        """The feed-forward's width."""
        return self.dim * self.hidden_scale

    def validate(self) -> None:
        """Raise ConfigError if sizes are out of range or contradict each other."""
        _require_sizes(self, "layers", "heads", "dim", "hidden_scale", "codebooks", "card")
        _require_sizes(self, "text_dim", "sample_rate")
        _require_seconds("max_duration", self.max_duration)
        if self.channels not in (1, 2):
            raise ConfigError(f"channels {self.channels}: expected 1 or 2")
        self._validate_conditioners()
        if self.dim % (2 * self.heads):
            raise ConfigError(f"dim {self.dim} is not an even multiple of the {self.heads} heads")
        if len(self.delays) != self.codebooks or list(self.delays) != sorted(self.delays) or min(self.delays) < 0:
            raise ConfigError(f"delays {list(self.delays)}: expected {self.codebooks} ascending numbers from 0 up")
        if self.delays[-1] > MOST["delay"]:
            raise ConfigError(f"delays {list(self.delays)}: expected at most {MOST['delay']}")

    def _validate_conditioners(self) -> None:
        cross, prepend, used = list(self.cross), list(self.prepend), self.cross + self.prepend
        if sorted(used) not in (["description"], ["description", "self_wav"]):
            raise ConfigError(
                f"fuser.cross {cross} and fuser.prepend {prepend}: "
                "expected description in one of them, and at most self_wav beside it"
            )
        if ("self_wav" in used) != (self.self_wav is not None):
            raise ConfigError(
                f"fuser.cross {cross}, fuser.prepend {prepend} and conditioners.self_wav "
                f"{'' if self.self_wav is None else 'not '}null: expected self_wav in a fuser and in conditioners, "
                "or in neither"
            )
        if self.self_wav is not None and self.self_wav.sample_rate != self.sample_rate:
            raise ConfigError(f"self_wav sample_rate {self.self_wav.sample_rate}: expected {self.sample_rate}")


@dataclass(frozen=True)
class TextConfig:
    """The text encoder, a T5."""

    layers: int
    heads: int
    head_dim: int  # T5 chooses it freely: heads x head_dim need not be dim
    dim: int
    hidden: int  # the feed-forward's width
    gated: bool  # feed-forward: gated gelu (T5 v1.1, flan), or relu
    vocab: int  # rows of the embedding: more than the tokenizer has tokens
    buckets: int  # of relative positions, both directions together
    max_distance: int  # relative positions from here on share the last bucket
    eps: float  # of the norms
    pad_token: int
    eos_token: int

    def validate(self) -> None:
        """Raise ConfigError if sizes are out of range or contradict each other."""
        _require_sizes(self, "layers", "heads", "head_dim", "dim", "hidden", "vocab")
        _require_sizes(self, "buckets", "max_distance")
        if self.buckets < 4 or self.max_distance <= self.buckets // 4:
            raise ConfigError(
                f"relative_attention_num_buckets {self.buckets}, relative_attention_max_distance {self.max_distance}: "
                "expected 4 buckets or more, and a distance over a quarter of them"
            )
        if not 0 < self.eps <= 1:
            raise ConfigError(f"layer_norm_epsilon {self.eps}: expected a number above 0, at most 1")
        for name in ("pad_token", "eos_token"):
            if not 0 <= getattr(self, name) < self.vocab:
                raise ConfigError(f"{name}_id {getattr(self, name)}: expected a token of the {self.vocab}")


@dataclass(frozen=True)
class MertConfig:
    """MERT, the feature extractor of style models."""

    layers: int
    heads: int
    dim: int
    hidden: int  # the feed-forward's width
    channels: tuple[int, ...]  # of the strided convolutions on audio, first to last
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    position_kernel: int  # features that the positional convolution sees
    position_groups: int
    sample_rate: int

    @property
    def hop(self) -> int:
        """Samples from one feature to the next."""
        return math.prod(self.strides)

    @property
    def receptive_field(self) -> int:
        """Samples that one feature sees: the shortest audio that has one."""
        samples = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def features(self, samples: int) -> int:
        """How many features that many samples have."""
        return max(0, (samples - self.receptive_field) // self.hop + 1)

    def validate(self) -> None:
        """Raise ConfigError if sizes are out of range or contradict each other."""
        _require_sizes(self, "layers", "heads", "dim", "hidden", "position_kernel", "position_groups")
        convolutions = self.channels, self.kernels, self.strides
        if len(set(map(len, convolutions))) > 1 or not self.channels or min(map(min, convolutions)) < 1:
            raise ConfigError(
                f"conv_dim {list(self.channels)}, conv_kernel {list(self.kernels)}, conv_stride {list(self.strides)}: "
                "expected numbers above 0, as many in each"
            )
        if len(self.channels) > MOST["convolutions"] or max(self.channels) > MOST["channels"]:
            raise ConfigError(
                f"conv_dim {list(self.channels)}: expected at most {MOST['convolutions']} numbers up to "
                f"{MOST['channels']}"
            )
        if max(self.kernels) > MOST["kernel"] or self.hop > MOST["hop"]:
            raise ConfigError(
                f"conv_kernel {list(self.kernels)}, conv_stride {list(self.strides)}: expected numbers up to "
                f"{MOST['kernel']}, strides with a product of at most {MOST['hop']}"
            )
        for name in ("heads", "position_groups"):
            if self.dim % getattr(self, name):
                raise ConfigError(f"dim {self.dim} is not a multiple of the {name} {getattr(self, name)}")


@dataclass(frozen=True)
class CodecConfig:
    """The codec: an EnCodec that is not causal, with weight norm and ELU."""

    sample_rate: int
    channels: int
    ratios: tuple[int, ...]  # upsampling factors of the decoder, in its order; the encoder's, last to first
    filters: int  # channels of the outermost convolution: each ratio doubles them
    dimension: int  # of the latent, and of the codebooks' vectors
    kernel_size: int  # of the first convolution
    last_kernel_size: int
    residual_kernel_size: int
    residual_layers: int  # residual blocks at each ratio
    dilation_base: int  # block j has dilation base^j
    compress: int  # channels of a residual block over those inside it
    lstm_layers: int
    pad_mode: str
    codebooks: int
    card: int

    @property
    def hop(self) -> int:
        """Samples of a frame."""
        return math.prod(self.ratios)

    @property
    def frame_rate(self) -> int:
        """Frames a second."""
        return self.sample_rate // self.hop

    @property
    def width(self) -> int:
        """Channels of the LSTM."""
        return self.filters * 2 ** len(self.ratios)

    @property
    def near(self) -> int:
        """Frames on each side of one that the decoder's first convolution sees, or its mirror at an end; at least 1."""
        return max(1, self.kernel_size // 2)

    @property
    def reach(self) -> tuple[int, int]:
        """Frames before and after one that the decoder's convolutions after the LSTM see.

        Followed from the samples of frame 0 inwards: which of each layer's inputs they depend on.
        """
        convolutions = [(self.residual_kernel_size - 1) * self.dilation_base**j for j in range(self.residual_layers)]
        total = self.last_kernel_size - 1
        first, last = -(total - total // 2), self.hop - 1 + total // 2
        for ratio in reversed(self.ratios):
            for total in convolutions:
                first, last = first - (total - total // 2), last + total // 2
            left = ratio - ratio // 2  # input i of a transposed convolution makes i x ratio - left + 0 .. 2 ratio - 1
            first, last = -((2 * ratio - 1 - left - first) // ratio), (last + left) // ratio
        return -first, last

    @property
    def lookahead(self) -> int:
        """Frames after one that its audio depends on."""
        return self.near + self.reach[1]

    def validate(self) -> None:
        """Raise ConfigError if sizes are out of range or contradict each other."""
        if not self.ratios or min(self.ratios) < 2:
            raise ConfigError(f"ratios {list(self.ratios)}: expected numbers above 1")
        if len(self.ratios) > MOST["ratios"] or self.hop > MOST["hop"]:
            most = f"at most {MOST['ratios']} numbers with a product of at most {MOST['hop']}"
            raise ConfigError(f"ratios {list(self.ratios)}: expected {most}")
        _require_sizes(self, "filters", "dimension", "kernel_size", "last_kernel_size", "residual_kernel_size")
        _require_sizes(self, "residual_layers", "dilation_base", "compress", "lstm_layers", "codebooks", "card")
        _require_sizes(self, "sample_rate")
        if self.channels not in (1, 2):
            raise ConfigError(f"channels {self.channels}: expected 1 or 2")
        if self.sample_rate % self.hop:
            raise ConfigError(
                f"sample_rate {self.sample_rate} is not a multiple of the hop {self.hop}: "
                f"{self.sample_rate / self.hop:.2f} codes a second, expected a whole number (MusicGen's codec: 50)"
            )
        if (self.residual_kernel_size - 1) * self.dilation_base ** (self.residual_layers - 1) > MOST["reach"]:
            raise ConfigError(
                f"dilation_base {self.dilation_base}, residual_layers {self.residual_layers}: the last residual block "
                f"sees more than {MOST['reach']} places"
            )
        if self.filters < self.compress:
            raise ConfigError(f"filters {self.filters}: expected compress, {self.compress}, or more")
        if self.pad_mode not in PAD_MODES:
            raise ConfigError(f"pad_mode {self.pad_mode!r}: expected {' or '.join(map(repr, PAD_MODES))}")
