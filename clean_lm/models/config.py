"""What a checkpoint says about itself: frozen dataclasses filled from its configuration, nothing guessed."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What a model was trained as, by the names of audiocraft's solvers; its own files from before its release may say the
# last two.
SOLVERS = {"musicgen": "musicgen", "audiogen": "audiogen", "lm": "musicgen", "sound_lm": "audiogen"}

# Every option of audiocraft's transformer that would make another model, as
#   field of xp.cfg: (the value these modules implement, audiocraft's own default where the field is absent)
# The defaults are those of LMModel, StreamingTransformer(Layer), ConditionFuser and DelayedPatternProvider:
# an old xp.cfg may leave a field out, and its absence then means that default, not ours.
IMPLEMENTED: dict[str, tuple[Any, Any]] = {
    "lm_model": ("transformer_lm", None),
    "transformer_lm.norm": ("layer_norm", "layer_norm"),
    "transformer_lm.norm_first": (True, False),
    "transformer_lm.activation": ("gelu", "relu"),
    "transformer_lm.causal": (True, False),
    "transformer_lm.bias_attn": (False, True),
    "transformer_lm.bias_ff": (False, True),
    "transformer_lm.bias_proj": (False, True),
    "transformer_lm.positional_embedding": ("sin", "sin"),
    "transformer_lm.max_period": (10_000, 10_000),
    "transformer_lm.positional_scale": (1, 1),
    "transformer_lm.xpos": (False, False),
    "transformer_lm.layer_scale": (None, None),
    "transformer_lm.qk_layer_norm": (False, False),
    "transformer_lm.qk_layer_norm_cross": (False, False),
    "transformer_lm.kv_repeat": (1, 1),
    "transformer_lm.past_context": (None, None),
    "fuser.sum": ([], []),
    "fuser.input_interpolate": ([], []),
    "fuser.cross_attention_pos_emb": (False, False),
    "conditioners.description.t5.normalize_text": (False, False),
    "codebooks_pattern.delay.flatten_first": (0, 0),
    "codebooks_pattern.delay.empty_initial": (0, 0),
    "interleave_stereo_codebooks.per_timestep": (False, False),
}

# And for what stands before the first column, under conditioners.self_wav.chroma_stem: ChromaStemConditioner and
# ChromaExtractor. match_len_on_eval is not among them: whatever it says, upstream sets it to generate.
MELODY_IMPLEMENTED: dict[str, tuple[Any, Any]] = {
    "argmax": (True, False),
    "eval_wavs": (None, None),
    "nfft": (None, None),
    "winlen": (None, None),
    "winhop": (None, None),
    "norm": (math.inf, math.inf),
}

# And under conditioners.self_wav.style: StyleConditioner and FeatureExtractor.
STYLE_IMPLEMENTED: dict[str, tuple[Any, Any]] = {
    "model_name": ("mert", None),
    "batch_norm": (True, True),
    "use_middle_of_segment": (False, False),
}

# StyleConditioner's transformer_scale: (dim, heads, layers). Its "none", no transformer, is not implemented; the last
# is of tests/golden/style.
STYLE_SCALES = {
    "xsmall": (256, 8, 4),
    "default": (512, 8, 8),
    "large": (1024, 16, 24),
    "tiny": (32, 4, 2),
}
STYLE_FEATURES = 768  # the width that StyleConditioner takes of its features, MERT's

# The same for audiocraft's codec: SEANetEncoder and -Decoder, ResidualVectorQuantizer and their builders.
CODEC_IMPLEMENTED: dict[str, tuple[Any, Any]] = {
    "compression_model": ("encodec", None),
    "encodec.autoencoder": ("seanet", None),
    "encodec.quantizer": ("rvq", None),
    "encodec.causal": (False, False),
    "encodec.renormalize": (False, False),
    "seanet.causal": (False, False),
    "seanet.activation": ("ELU", "ELU"),
    "seanet.activation_params.alpha": (1.0, 1.0),
    "seanet.norm": ("weight_norm", "none"),
    "seanet.true_skip": (True, True),
    "seanet.disable_norm_outer_blocks": (0, 0),
    "seanet.decoder.final_activation": (None, None),
    "seanet.decoder.trim_right_ratio": (1.0, 1.0),
    "rvq.codebook_dim": (None, None),
}

# And for Hugging Face's EncodecConfig, with its defaults.
HUGGINGFACE_CODEC_IMPLEMENTED: dict[str, tuple[Any, Any]] = {
    "use_causal_conv": (False, True),
    "normalize": (False, False),
    "norm_type": ("weight_norm", "weight_norm"),
    "trim_right_ratio": (1.0, 1.0),
    "use_conv_shortcut": (False, True),
    "chunk_length_s": (None, None),
    "overlap": (None, None),
}

PAD_MODES = ("constant", "reflect")

# T5's feed_forward_proj: what transformers makes of it, (dense_act_fn, is_gated_act)
T5_FEED_FORWARD = {"relu": ("relu", False), "gated-gelu": ("gelu_new", True)}

# And for MERT: its own fields, then those of transformers' HubertConfig. 24 kHz is what MusicGen-style gives it.
MERT_IMPLEMENTED: dict[str, tuple[Any, Any]] = {
    "sample_rate": (24_000, None),
    "feature_extractor_cqt": (False, False),
    "deepnorm": (False, False),
    "feat_extract_norm": ("group", "group"),
    "feat_extract_activation": ("gelu", "gelu"),
    "feat_proj_layer_norm": (True, True),
    "conv_bias": (False, False),
    "conv_pos_batch_norm": (False, False),
    "do_stable_layer_norm": (False, False),
    "hidden_act": ("gelu", "gelu"),
    "layer_norm_eps": (1e-5, 1e-5),
}

_ABSENT: Any = object()


class ConfigError(ValueError):
    """A configuration that these modules do not implement, or that lacks a field they need."""


class Fields:
    """`xp.cfg` read by dotted name. It is saved unresolved: `${a.b}` is followed, other resolvers are not."""

    def __init__(self, tree: Mapping[str, Any]):
        self.tree = tree

    def get(self, name: str, default: Any = None, via: tuple[str, ...] = ()) -> Any:
        """The value of `name` ("transformer_lm.dim"), or `default` where it is absent; `via` are the references
        that led here. Raises ConfigError where a reference leads nowhere."""
        value: Any = self.tree
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
            reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
            value = self._follow(reference[1], (*via, name)) if reference else value
        return value

    def _follow(self, name: str, via: tuple[str, ...]) -> Any:
        chain = " -> ".join((*via, name))
        if name in via:
            raise ConfigError(f"configuration field {via[0]} refers to itself: {chain}")
        value = self.get(name, _ABSENT, via)
        if value is _ABSENT:
            raise ConfigError(f"configuration field {via[0]} refers to {name}, which is absent: {chain}")
        return value

    def need(self, name: str, kind: type, default: Any = None) -> Any:
        """The value of `name`, converted to `kind`; `default` where it is absent.

        Raises ConfigError where it is absent without a default, or of another kind.
        """
        value = self.get(name, default)
        if value is None:
            raise ConfigError(f"the configuration has no {name}: it is needed to build the model")
        if isinstance(value, str) and "${" in value:
            raise ConfigError(
                f"configuration field {name}: got {value!r}, which is known only where the model was trained; "
                "save the checkpoint again with its value"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise ConfigError(f"configuration field {name}: got {value!r}, expected {kind.__name__}")
        return kind(value)

    def need_list(self, name: str, kind: type) -> tuple[Any, ...]:
        """The items of `name`, all of them `kind`. Raises ConfigError as `need` does."""
        items = self.need(name, list)
        kinds = (int, float) if kind is float else kind
        odd = [item for item in items if isinstance(item, bool) or not isinstance(item, kinds)]
        if odd:
            raise ConfigError(f"configuration field {name}: got {odd[0]!r} in it, expected a list of {kind.__name__}")
        return tuple(items)


@dataclass(frozen=True)
class MelodyConfig:
    """The conditioner of a melody model: which pitch class a sound is on, a frame at a time."""

    chroma: int  # pitch classes
    radix2_exp: int  # samples of a frame, as a power of 2
    sample_rate: int
    duration: float  # seconds whose frames stand before the first column, however long the sound is
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
        """Frames of the duration: sounds that are shorter than one frame are made as long as it."""
        return 1 + max(int(self.sample_rate * self.duration), self.n_fft) // self.hop

    @classmethod
    def from_xp_cfg(cls, tree: Mapping[str, Any]) -> "MelodyConfig":
        """Read conditioners.self_wav of an audiocraft LM's `xp.cfg`, whose options `unimplemented` has looked at.

        Raises ConfigError with the first field that is missing or none.
        """
        fields, at = Fields(tree), "conditioners.self_wav.chroma_stem."
        config = cls(
            chroma=fields.need(f"{at}n_chroma", int),
            radix2_exp=fields.need(f"{at}radix2_exp", int),
            sample_rate=fields.need(f"{at}sample_rate", int),
            duration=fields.need("dataset.segment_duration", float),
            output_dim=fields.need("transformer_lm.dim", int),
        )
        config.check()
        return config

    def check(self) -> None:
        """Raise ConfigError where the sizes are none."""
        for name in ("sample_rate", "output_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"self_wav {name} {getattr(self, name)}: expected a number above 0")
        if self.chroma < 2:
            raise ConfigError(f"self_wav chroma {self.chroma}: expected 2 pitch classes or more")
        if not 2 <= self.radix2_exp <= 20:
            raise ConfigError(f"self_wav radix2_exp {self.radix2_exp}: expected a number from 2 to 20")
        if not 0 < self.duration < math.inf:
            raise ConfigError(f"self_wav duration {self.duration}: expected a number of seconds above 0")


@dataclass(frozen=True)
class StyleConfig:
    """The conditioner of a style model: an excerpt's features, told in a few vectors of its codebooks."""

    features: int  # width of the features
    dim: int
    heads: int
    layers: int
    levels: int  # codebooks: each tells what those before it left
    bins: int  # vectors of a codebook
    eval_q: int  # levels that count unless another number is asked for
    ds_factor: int  # frames that become one
    length: float  # seconds of the excerpt
    sample_rate: int
    output_dim: int  # the language model's width

    @property
    def hidden(self) -> int:
        """The feed-forward's width."""
        return 4 * self.dim

    @classmethod
    def from_xp_cfg(cls, tree: Mapping[str, Any]) -> "StyleConfig":
        """Read conditioners.self_wav of an audiocraft LM's `xp.cfg`, as MelodyConfig does."""
        fields, at = Fields(tree), "conditioners.self_wav.style."
        scale = fields.need(f"{at}transformer_scale", str, "default")
        if scale not in STYLE_SCALES:
            supported = ", ".join(map(repr, STYLE_SCALES))
            raise ConfigError(f"xp.cfg {at}transformer_scale: found {scale!r}, supported: {supported}")
        dim, heads, layers = STYLE_SCALES[scale]
        # defaults: StyleConditioner's
        config = cls(
            features=STYLE_FEATURES,
            dim=dim,
            heads=heads,
            layers=layers,
            levels=fields.need(f"{at}n_q_out", int, 6),
            bins=fields.need(f"{at}bins", int, 1024),
            eval_q=fields.need(f"{at}eval_q", int, 3),
            ds_factor=fields.need(f"{at}ds_factor", int, 15),
            length=fields.need(f"{at}length", float),
            sample_rate=fields.need(f"{at}sample_rate", int),
            output_dim=fields.need("transformer_lm.dim", int),
        )
        config.check()
        return config

    def check(self) -> None:
        """Raise ConfigError where the sizes are none or contradict each other."""
        for name in ("features", "dim", "heads", "layers", "levels", "ds_factor", "sample_rate", "output_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"self_wav {name} {getattr(self, name)}: expected a number above 0")
        if self.bins < 2:
            raise ConfigError(f"self_wav bins {self.bins}: expected 2 vectors or more")
        if not 1 <= self.eval_q <= self.levels:
            raise ConfigError(f"self_wav eval_q {self.eval_q}: expected a number from 1 to n_q_out, {self.levels}")
        if not 0 < self.length < math.inf:
            raise ConfigError(f"self_wav length {self.length}: expected a number of seconds above 0")


# xp.cfg's conditioners.self_wav.model
SELF_WAV = {"chroma_stem": (MelodyConfig, MELODY_IMPLEMENTED), "style": (StyleConfig, STYLE_IMPLEMENTED)}


@dataclass(frozen=True)
class LMConfig:
    """The language model of one checkpoint."""

    layers: int
    heads: int
    dim: int
    hidden_scale: int  # the feed-forward's width over dim
    codebooks: int
    card: int
    delays: tuple[int, ...]  # columns by which each codebook lags
    text_dim: int  # width of the text encoder's states
    text_encoder: str  # its name, "t5-base"
    max_duration: float  # seconds a model was trained on: one window
    solver: str  # "musicgen" or "audiogen": whose defaults it is generated with
    sample_rate: int
    channels: int
    cross: tuple[str, ...]  # conditioners that are attended to
    prepend: tuple[str, ...]  # conditioners that stand before the first column
    self_wav: MelodyConfig | StyleConfig | None  # what the conditioner of that name does with a sound

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

    @classmethod
    def from_xp_cfg(cls, tree: Mapping[str, Any], text_dim: int) -> "LMConfig":
        """Read the `xp.cfg` of an audiocraft LM.

        `text_dim` is the width that the checkpoint's text projection takes: xp.cfg names the text encoder only.
        Raises ConfigError with every field that asks for another model, or with the first that is missing.
        """
        fields = Fields(tree)
        problems = unimplemented(fields)
        if problems:
            raise ConfigError("this checkpoint is not a model that clean_lm implements:\n  " + "\n  ".join(problems))
        codebooks = fields.need("transformer_lm.n_q", int)
        config = cls(
            layers=fields.need("transformer_lm.num_layers", int),
            heads=fields.need("transformer_lm.num_heads", int),
            dim=fields.need("transformer_lm.dim", int),
            hidden_scale=fields.need("transformer_lm.hidden_scale", int),
            codebooks=codebooks,
            card=fields.need("transformer_lm.card", int),
            delays=_delays(fields, codebooks),
            text_dim=text_dim,
            text_encoder=fields.need("conditioners.description.t5.name", str),
            max_duration=fields.need("dataset.segment_duration", float),
            solver=SOLVERS[fields.need("solver", str, "musicgen")],
            sample_rate=fields.need("sample_rate", int),
            channels=fields.need("channels", int),
            cross=fields.need_list("fuser.cross", str),
            prepend=fields.need_list("fuser.prepend", str),
            self_wav=_self_wav(fields),
        )
        config.check()
        return config

    @classmethod
    def from_huggingface(cls, tree: Mapping[str, Any]) -> "LMConfig":
        """Read the config.json of a Hugging Face MusicGen, with its generation_config.json under that name.

        Raises ConfigError as from_xp_cfg does.
        """
        fields = Fields(tree)
        problems = []
        for name, ours in (
            ("decoder.activation_function", "gelu"),
            ("decoder.scale_embedding", False),
        ):
            if fields.get(name, ours) != ours:
                problems.append(f"config.json {name}: found {fields.get(name)!r}, supported: {ours!r}")
        dim, hidden = fields.need("decoder.hidden_size", int), fields.need("decoder.ffn_dim", int)
        if dim < 1 or hidden % dim:
            problems.append(f"config.json decoder.ffn_dim: found {hidden}, expected a multiple of hidden_size {dim}")
        if problems:
            raise ConfigError("this checkpoint is not a model that clean_lm implements:\n  " + "\n  ".join(problems))
        codebooks = fields.need("decoder.num_codebooks", int)
        channels = 1 if fields.get("decoder.audio_channels") is None else fields.need("decoder.audio_channels", int)
        sample_rate = fields.need("audio_encoder.sampling_rate", int)
        hop = math.prod(fields.need_list("audio_encoder.upsampling_ratios", int))
        name_or_path = fields.get("text_encoder._name_or_path")
        config = cls(
            layers=fields.need("decoder.num_hidden_layers", int),
            heads=fields.need("decoder.num_attention_heads", int),
            dim=dim,
            hidden_scale=hidden // dim,
            codebooks=codebooks,
            card=fields.need("decoder.vocab_size", int),
            delays=tuple(k // max(channels, 1) for k in range(codebooks)),  # stereo: left and right share a delay
            text_dim=fields.need("text_encoder.d_model", int),
            text_encoder=fields.need("text_encoder._name_or_path", str) if name_or_path else "t5",
            max_duration=fields.need("generation_config.max_length", int) * hop / max(sample_rate, 1),
            solver="musicgen",
            sample_rate=sample_rate,
            channels=channels,
            cross=("description",),
            prepend=(),
            self_wav=None,
        )
        config.check()
        return config

    def check(self) -> None:
        """Raise ConfigError where the sizes are none or contradict each other."""
        for name in ("layers", "heads", "dim", "hidden_scale", "codebooks", "card", "text_dim", "sample_rate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: expected a number above 0")
        if not 0 < self.max_duration < math.inf:
            raise ConfigError(f"max_duration {self.max_duration}: expected a number of seconds above 0")
        if self.channels not in (1, 2):
            raise ConfigError(f"channels {self.channels}: expected 1 or 2")
        if sorted(self.cross + self.prepend) not in (["description"], ["description", "self_wav"]):
            raise ConfigError(
                f"fuser.cross {list(self.cross)} and fuser.prepend {list(self.prepend)}: "
                "expected description in one of them, and at most self_wav beside it"
            )
        if ("self_wav" in self.cross + self.prepend) != (self.self_wav is not None):
            raise ConfigError(
                f"fuser.cross {list(self.cross)}, fuser.prepend {list(self.prepend)} and conditioners.self_wav "
                f"{'' if self.self_wav is None else 'not '}null: expected self_wav in a fuser and in conditioners, "
                "or in neither"
            )
        if self.self_wav is not None and self.self_wav.sample_rate != self.sample_rate:
            raise ConfigError(f"self_wav sample_rate {self.self_wav.sample_rate}: expected {self.sample_rate}")
        if self.dim % (2 * self.heads):
            raise ConfigError(f"dim {self.dim} is not an even multiple of the {self.heads} heads")
        if len(self.delays) != self.codebooks or list(self.delays) != sorted(self.delays) or min(self.delays) < 0:
            raise ConfigError(f"delays {list(self.delays)}: expected {self.codebooks} ascending numbers from 0 up")


@dataclass(frozen=True)
class TextConfig:
    """The text encoder: T5's, whose checkpoint is Hugging Face's."""

    layers: int
    heads: int
    head_dim: int  # T5 chooses it freely: heads x head_dim need not be dim
    dim: int
    hidden: int  # the feed-forward's width
    gated: bool  # feed-forward: gated gelu (T5 v1.1, flan), or relu
    vocab: int  # rows of the embedding: more than the tokenizer has tokens
    buckets: int  # of relative positions, for both directions together
    max_distance: int  # from which on all relative positions share a bucket
    eps: float  # of the norms
    pad_token: int
    eos_token: int

    @classmethod
    def from_huggingface(cls, tree: Mapping[str, Any], at: str = "") -> "TextConfig":
        """Read the config.json of a T5, or what stands in another model's under `at` ("text_encoder.").

        Raises ConfigError with every field that asks for another model, or with the first that is missing.
        """
        fields = Fields(tree)
        feed_forward = fields.get(f"{at}feed_forward_proj", "relu")
        problems = []
        if fields.get(f"{at}model_type") != "t5":
            problems.append(f"config.json {at}model_type: found {fields.get(f'{at}model_type')!r}, supported: 't5'")
        if not isinstance(feed_forward, str) or feed_forward not in T5_FEED_FORWARD:
            supported = ", ".join(map(repr, T5_FEED_FORWARD))
            problems.append(f"config.json {at}feed_forward_proj: found {feed_forward!r}, supported: {supported}")
        else:
            for name, ours in zip(("dense_act_fn", "is_gated_act"), T5_FEED_FORWARD[feed_forward], strict=True):
                if (value := fields.get(at + name, ours)) != ours:
                    problems.append(
                        f"config.json {at}{name}: found {value!r}, supported with {feed_forward!r}: {ours!r}"
                    )
        if problems:
            raise ConfigError("this text encoder is not one that clean_lm implements:\n  " + "\n  ".join(problems))
        # defaults: what transformers' T5Config takes where a field is left out, as in the files of t5-base, t5-large
        config = cls(
            layers=fields.need(f"{at}num_layers", int),
            heads=fields.need(f"{at}num_heads", int),
            head_dim=fields.need(f"{at}d_kv", int),
            dim=fields.need(f"{at}d_model", int),
            hidden=fields.need(f"{at}d_ff", int),
            gated=T5_FEED_FORWARD[feed_forward][1],
            vocab=fields.need(f"{at}vocab_size", int),
            buckets=fields.need(f"{at}relative_attention_num_buckets", int, 32),
            max_distance=fields.need(f"{at}relative_attention_max_distance", int, 128),
            eps=fields.need(f"{at}layer_norm_epsilon", float, 1e-6),
            pad_token=fields.need(f"{at}pad_token_id", int, 0),
            eos_token=fields.need(f"{at}eos_token_id", int, 1),
        )
        config.check()
        return config

    def check(self) -> None:
        """Raise ConfigError where the sizes are none or contradict each other."""
        for name in ("layers", "heads", "head_dim", "dim", "hidden", "vocab"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: expected a number above 0")
        if self.buckets < 4 or self.max_distance <= self.buckets // 4:
            raise ConfigError(
                f"relative_attention_num_buckets {self.buckets}, relative_attention_max_distance {self.max_distance}: "
                "expected 4 buckets or more, and a distance over a quarter of them"
            )
        if not 0 < self.eps < math.inf:
            raise ConfigError(f"layer_norm_epsilon {self.eps}: expected a number above 0")
        for name in ("pad_token", "eos_token"):
            if not 0 <= getattr(self, name) < self.vocab:
                raise ConfigError(f"{name}_id {getattr(self, name)}: expected a token of the {self.vocab}")


@dataclass(frozen=True)
class MertConfig:
    """What hears a style: MERT, whose checkpoint is Hugging Face's."""

    layers: int
    heads: int
    dim: int
    hidden: int  # the feed-forward's width
    channels: tuple[int, ...]  # of the convolutions that shorten audio, from the first to the last
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
        """Samples that one feature is made of: the shortest audio."""
        samples = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def features(self, samples: int) -> int:
        """How many features audio of that length has."""
        return max(0, (samples - self.receptive_field) // self.hop + 1)

    @classmethod
    def from_huggingface(cls, tree: Mapping[str, Any]) -> "MertConfig":
        """Read the config.json of a MERT, or of a HuBERT that is built as one.

        Raises ConfigError with every field that asks for another model, or with the first that is missing.
        """
        fields = Fields(tree)
        problems = unlike(fields, MERT_IMPLEMENTED, "config.json", "transformers")
        relax = fields.need("attention_relax", float, -1.0)
        if relax > 0:
            problems.append(f"config.json attention_relax: found {relax!r}, supported: -1.0")
        if problems:
            raise ConfigError("this MERT is not one that clean_lm implements:\n  " + "\n  ".join(problems))
        config = cls(
            layers=fields.need("num_hidden_layers", int),
            heads=fields.need("num_attention_heads", int),
            dim=fields.need("hidden_size", int),
            hidden=fields.need("intermediate_size", int),
            channels=fields.need_list("conv_dim", int),
            kernels=fields.need_list("conv_kernel", int),
            strides=fields.need_list("conv_stride", int),
            position_kernel=fields.need("num_conv_pos_embeddings", int),
            position_groups=fields.need("num_conv_pos_embedding_groups", int),
            sample_rate=fields.need("sample_rate", int),
        )
        config.check()
        return config

    def check(self) -> None:
        """Raise ConfigError where the sizes are none or contradict each other."""
        for name in ("layers", "heads", "dim", "hidden", "position_kernel", "position_groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: expected a number above 0")
        convolutions = self.channels, self.kernels, self.strides
        if len(set(map(len, convolutions))) > 1 or not self.channels or min(map(min, convolutions)) < 1:
            raise ConfigError(
                f"conv_dim {list(self.channels)}, conv_kernel {list(self.kernels)}, conv_stride {list(self.strides)}: "
                "expected numbers above 0, as many in each"
            )
        for name in ("heads", "position_groups"):
            if self.dim % getattr(self, name):
                raise ConfigError(f"dim {self.dim} is not a multiple of the {name} {getattr(self, name)}")


@dataclass(frozen=True)
class CodecConfig:
    """The codec of one checkpoint: EnCodec, not causal, weight-normed, ELU."""

    sample_rate: int
    channels: int
    ratios: tuple[int, ...]  # by which the decoder lengthens, in its order; the encoder goes back
    filters: int  # channels of the outermost convolution: each ratio doubles them
    dimension: int  # of the latent, and of the codebooks' vectors
    kernel_size: int  # of the first convolution
    last_kernel_size: int
    residual_kernel_size: int
    residual_layers: int  # residual blocks at each ratio
    dilation_base: int  # block j has dilation base^j
    compress: int  # by which a residual block narrows inside
    lstm_layers: int
    pad_mode: str
    codebooks: int
    card: int

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return math.prod(self.ratios)

    @property
    def frame_rate(self) -> int:
        """Frames a second."""
        return self.sample_rate // self.hop

    @property
    def width(self) -> int:
        """Channels where audio is shortest: of the LSTM."""
        return self.filters * 2 ** len(self.ratios)

    @property
    def near(self) -> int:
        """Frames on each side of one that the decoder's first convolution sees, or its mirror at an end; at least 1."""
        return max(1, self.kernel_size // 2)

    @property
    def reach(self) -> tuple[int, int]:
        """Frames before and after one that the decoder's other convolutions see, behind the LSTM.

        From the samples of frame 0 inwards: which of each layer's inputs they are made of.
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
        """Frames after one that its sound depends on."""
        return self.near + self.reach[1]

    @classmethod
    def from_xp_cfg(cls, tree: Mapping[str, Any]) -> "CodecConfig":
        """Read the `xp.cfg` of an audiocraft codec.

        Raises ConfigError with every field that asks for another model, or with the first that is missing.
        """
        fields = Fields(tree)
        problems = unlike(fields, CODEC_IMPLEMENTED, "xp.cfg", "audiocraft") + _overrides(fields)
        if problems:
            raise ConfigError("this codec is not one that clean_lm implements:\n  " + "\n  ".join(problems))
        config = cls(
            sample_rate=fields.need("encodec.sample_rate", int),
            channels=fields.need("encodec.channels", int),
            ratios=fields.need_list("seanet.ratios", int),
            filters=fields.need("seanet.n_filters", int),
            dimension=fields.need("seanet.dimension", int),
            kernel_size=fields.need("seanet.kernel_size", int),
            last_kernel_size=fields.need("seanet.last_kernel_size", int),
            residual_kernel_size=fields.need("seanet.residual_kernel_size", int),
            residual_layers=fields.need("seanet.n_residual_layers", int),
            dilation_base=fields.need("seanet.dilation_base", int),
            compress=fields.need("seanet.compress", int),
            lstm_layers=fields.need("seanet.lstm", int),
            pad_mode=fields.need("seanet.pad_mode", str),
            codebooks=fields.need("rvq.n_q", int),
            card=fields.need("rvq.bins", int),
        )
        config.check()
        return config

    @classmethod
    def from_huggingface(cls, tree: Mapping[str, Any], at: str = "") -> "CodecConfig":
        """Read the config.json of an EnCodec, or what stands in another model's under `at` ("audio_encoder.").

        Raises ConfigError as from_xp_cfg does.
        """
        fields = Fields(tree)
        problems = unlike(fields, HUGGINGFACE_CODEC_IMPLEMENTED, "config.json", "transformers", at)
        dimension, inner = fields.need(f"{at}hidden_size", int), fields.get(f"{at}codebook_dim")
        if inner not in (None, dimension):
            problems.append(f"config.json {at}codebook_dim: found {inner!r}, supported: hidden_size, {dimension}")
        if problems:
            raise ConfigError("this codec is not one that clean_lm implements:\n  " + "\n  ".join(problems))
        sample_rate = fields.need(f"{at}sampling_rate", int)
        ratios = fields.need_list(f"{at}upsampling_ratios", int)
        card = fields.need(f"{at}codebook_size", int)
        bandwidths = fields.need_list(f"{at}target_bandwidths", float)
        config = cls(
            sample_rate=sample_rate,
            channels=fields.need(f"{at}audio_channels", int),
            ratios=ratios,
            filters=fields.need(f"{at}num_filters", int),
            dimension=dimension,
            kernel_size=fields.need(f"{at}kernel_size", int),
            last_kernel_size=fields.need(f"{at}last_kernel_size", int),
            residual_kernel_size=fields.need(f"{at}residual_kernel_size", int),
            residual_layers=fields.need(f"{at}num_residual_layers", int),
            dilation_base=fields.need(f"{at}dilation_growth_rate", int),
            compress=fields.need(f"{at}compress", int),
            lstm_layers=fields.need(f"{at}num_lstm_layers", int),
            pad_mode=fields.need(f"{at}pad_mode", str),
            codebooks=_codebooks(bandwidths, sample_rate, math.prod(ratios), card),
            card=card,
        )
        config.check()
        return config

    def check(self) -> None:
        """Raise ConfigError where the sizes are none or contradict each other."""
        if not self.ratios or min(self.ratios) < 2:
            raise ConfigError(f"ratios {list(self.ratios)}: expected numbers above 1")
        for name in (
            *("filters", "dimension", "kernel_size", "last_kernel_size", "residual_kernel_size", "residual_layers"),
            *("dilation_base", "compress", "lstm_layers", "codebooks", "card", "sample_rate"),
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)}: expected a number above 0")
        if self.channels not in (1, 2):
            raise ConfigError(f"channels {self.channels}: expected 1 or 2")
        if self.sample_rate % self.hop:
            raise ConfigError(f"sample_rate {self.sample_rate} is not a multiple of the hop {self.hop}")
        if self.filters < self.compress:
            raise ConfigError(f"filters {self.filters}: expected compress, {self.compress}, or more")
        if self.pad_mode not in PAD_MODES:
            raise ConfigError(f"pad_mode {self.pad_mode!r}: expected {' or '.join(map(repr, PAD_MODES))}")


def unlike(
    fields: Fields, implemented: Mapping[str, tuple[Any, Any]], file: str, library: str, at: str = ""
) -> list[str]:
    """One line for every field of a table, found under `at`, that asks for something these modules do not do."""
    problems = []
    for name, (ours, default) in implemented.items():
        value = fields.get(at + name, _ABSENT)
        if (default if value is _ABSENT else value) != ours:
            found = f"nothing ({library} then takes {default!r})" if value is _ABSENT else repr(value)
            problems.append(f"{file} {at}{name}: found {found}, supported: {ours!r}")
    return problems


def unimplemented(fields: Fields) -> list[str]:
    """One line for every field that asks for something these modules do not do."""
    problems = unlike(fields, IMPLEMENTED, "xp.cfg", "audiocraft")
    solver = fields.get("solver", "musicgen")
    if not isinstance(solver, str) or solver not in SOLVERS:
        problems.append(f"xp.cfg solver: found {solver!r}, supported: {', '.join(map(repr, SOLVERS))}")
    pattern = fields.get("codebooks_pattern.modeling") or fields.get("transformer_lm.q_modeling")
    if pattern != "delay":
        problems.append(f"xp.cfg codebooks_pattern.modeling: found {pattern!r}, supported: 'delay'")
    text = fields.get("conditioners.description.model")
    if text != "t5":
        problems.append(f"xp.cfg conditioners.description.model: found {text!r}, supported: 't5'")
    model = fields.get("conditioners.self_wav.model")
    if isinstance(model, str) and model in SELF_WAV:
        problems += unlike(fields, SELF_WAV[model][1], "xp.cfg", "audiocraft", f"conditioners.self_wav.{model}.")
    elif model is not None:
        supported = ", ".join(map(repr, SELF_WAV))
        problems.append(f"xp.cfg conditioners.self_wav.model: found {model!r}, supported: {supported}")
    interleaved = fields.get("interleave_stereo_codebooks.use", False)
    if interleaved != (fields.get("channels") == 2):
        problems.append(
            f"xp.cfg interleave_stereo_codebooks.use: found {interleaved!r} with channels: {fields.get('channels')!r}, "
            "supported: 2 channels that are interleaved, or 1"
        )
    return problems


def _self_wav(fields: Fields) -> MelodyConfig | StyleConfig | None:
    """The conditioner that reads a sound, None where a model has none."""
    model = fields.get("conditioners.self_wav.model")
    return None if model is None else SELF_WAV[model][0].from_xp_cfg(fields.tree)


def _delays(fields: Fields, codebooks: int) -> tuple[int, ...]:
    """Released files of 2023 may name the pattern in transformer_lm.q_modeling: delays are then 0, 1, 2, ..."""
    name = "codebooks_pattern.delay.delays"
    if fields.get("codebooks_pattern.modeling") is None or fields.get(name) is None:
        return tuple(range(codebooks))
    return fields.need_list(name, int)


def _overrides(fields: Fields) -> list[str]:
    """seanet.encoder and seanet.decoder may say of one half what seanet says of both: supported is the same."""
    problems = []
    for half in ("encoder", "decoder"):
        for name in fields.get(f"seanet.{half}") or {}:
            value, both = fields.get(f"seanet.{half}.{name}"), fields.get(f"seanet.{name}")
            if f"seanet.{half}.{name}" not in CODEC_IMPLEMENTED and value not in (None, both):
                problems.append(f"xp.cfg seanet.{half}.{name}: found {value!r}, supported: {both!r}, as seanet.{name}")
    if fields.get("seanet.channels") != fields.get("encodec.channels"):
        channels = fields.get("encodec.channels")
        problems.append(f"xp.cfg seanet.channels: found {fields.get('seanet.channels')!r}, supported: {channels!r}")
    return problems


def _codebooks(bandwidths: tuple[float, ...], sample_rate: int, hop: int, card: int) -> int:
    """How many codebooks the last bandwidth [kbit/s] takes: transformers' EncodecConfig.num_quantizers."""
    frame_rate, bits = math.ceil(sample_rate / max(hop, 1)), math.ceil(math.log2(max(card, 2)))
    return int(1000 * bandwidths[-1] // (max(frame_rate, 1) * bits)) if bandwidths else 0
