"""Hugging Face's config.json -> dataclasses of clean_lm.models.config, or a ConfigError with every unsupported field.

Each reader checks what is supported first, then reads sizes.
"""

import math
from collections.abc import Mapping
from typing import Any

from clean_lm.models.config import (
    MOST,
    CodecConfig,
    ConfigError,
    LMConfig,
    MelodyConfig,
    MertConfig,
    TextConfig,
    require_size,
)
from weights.errors import show
from weights.fields import Fields, Supported, require_supported, unsupported

# The language model, by the defaults of MusicgenDecoderConfig.
LM_SUPPORTED: Supported = {
    "decoder.activation_function": ("gelu", "gelu"),
    "decoder.scale_embedding": (False, False),
}

TRAINED = 30.0  # seconds of audio that MusicGen is trained on: its windows
MELODY_FRAME, MELODY_HOP = 16_384, 4096  # defaults of MusicgenMelodyFeatureExtractor's n_fft and hop_length, in samples

# The codec, by the defaults of EncodecConfig.
CODEC_SUPPORTED: Supported = {
    "use_causal_conv": (False, True),
    "normalize": (False, False),
    "norm_type": ("weight_norm", "weight_norm"),
    "trim_right_ratio": (1.0, 1.0),
    "use_conv_shortcut": (False, True),
    "chunk_length_s": (None, None),
    "overlap": (None, None),
}

# T5's feed_forward_proj: what T5Config makes of it, (dense_act_fn, is_gated_act).
T5_FEED_FORWARD = {"relu": ("relu", False), "gated-gelu": ("gelu_new", True)}

# MERT: its own fields, then those of HubertConfig with its defaults. 24 kHz is the rate of MusicGen-style's MERT.
MERT_SUPPORTED: Supported = {
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


def lm_config(tree: Mapping[str, Any]) -> LMConfig:
    """Read the config.json of a MusicGen, with its generation_config.json as the field of that name.

    Raises ConfigError with every unsupported field, or with the first that is missing or out of range.
    """
    fields = Fields(tree)
    dim, hidden = fields.require("decoder.hidden_size", int), fields.require("decoder.ffn_dim", int)
    problems = unsupported(fields, LM_SUPPORTED, "config.json", "transformers")
    if dim < 1 or hidden % dim:
        problems.append(f"config.json decoder.ffn_dim: found {hidden}, expected a multiple of hidden_size {dim}")
    require_supported("language model", problems)
    codebooks, channels = fields.require("decoder.num_codebooks", int), _channels(fields)
    require_size("codebooks", codebooks)
    melody = tree.get("model_type") == "musicgen_melody"
    config = LMConfig(
        layers=fields.require("decoder.num_hidden_layers", int),
        heads=fields.require("decoder.num_attention_heads", int),
        dim=dim,
        hidden_scale=hidden // dim,
        codebooks=codebooks,
        card=fields.require("decoder.vocab_size", int),
        delays=tuple(k // max(channels, 1) for k in range(codebooks)),  # stereo: left and right share a delay
        text_dim=fields.require("text_encoder.d_model", int),
        text_encoder=_text_encoder(fields),
        max_duration=_window(fields)[0],
        solver="musicgen",
        sample_rate=fields.require("audio_encoder.sampling_rate", int),
        channels=channels,
        cross=() if melody else ("description",),
        prepend=("self_wav", "description") if melody else (),
        self_wav=melody_config(fields, dim) if melody else None,
    )
    config.validate()
    return config


def melody_config(fields: Fields, dim: int) -> MelodyConfig:
    """Read the melody conditioner of a MusicGen Melody's config.json. Raises ConfigError.

    The feature extractor's settings are those of preprocessor_config.json, or transformers' defaults. How many frames
    the prefix has is said as such here, and as seconds in audiocraft's files.
    """
    at, sample_rate = "feature_extractor.", fields.require("audio_encoder.sampling_rate", int)
    frames, chroma = fields.require("chroma_length", int, 235), fields.require("num_chroma", int, 12)
    n_fft = fields.require(f"{at}n_fft", int, MELODY_FRAME)
    problems = [
        f"preprocessor_config.json {name}: found {show(value)}, supported: {show(ours)}"
        for name, default, ours in (
            ("hop_length", MELODY_HOP, n_fft // 4),
            ("num_chroma", chroma, chroma),
            ("sampling_rate", sample_rate, sample_rate),
        )
        if (value := fields.get(at + name, default)) != ours
    ]
    if n_fft < 4 or n_fft & (n_fft - 1):
        problems.append(f"preprocessor_config.json n_fft: found {n_fft}, supported: a power of 2")
    if frames < 5:
        problems.append(f"config.json chroma_length: found {frames}, supported: 5 or more")
    require_supported("melody conditioner", problems)
    config = MelodyConfig(
        chroma=chroma,
        radix2_exp=n_fft.bit_length() - 1,
        sample_rate=sample_rate,
        duration=(frames - 0.5) * (n_fft // 4) / max(sample_rate, 1),  # within the last frame, whatever the rounding
        output_dim=dim,
    )
    config.validate()
    return config


def _channels(fields: Fields) -> int:
    name = "decoder.audio_channels"
    return 1 if fields.get(name) is None else fields.require(name, int)


def _text_encoder(fields: Fields) -> str:
    """The name of the text encoder; "t5" where the file leaves it empty."""
    name = "text_encoder._name_or_path"
    return fields.require(name, str) if fields.get(name) else "t5"


def window_note(tree: Mapping[str, Any]) -> str | None:
    """What to tell of a model's windows where generation_config.json does not say them. Raises ConfigError."""
    return _window(Fields(tree))[1]


def _window(fields: Fields) -> tuple[float, str | None]:
    """Seconds of a window, and what to tell of them: those of generation_config.json's max_length, if it says 30 or
    more.

    It says how long a generation is by default. Where a recipe set it, it is shorter than what the model is trained on,
    and where nobody did, transformers leaves it out.
    """
    sample_rate = fields.require("audio_encoder.sampling_rate", int)
    hop = _hop(fields, "audio_encoder.")
    name = "generation_config.max_length"
    if fields.get(name) is None:
        return TRAINED, f"generation_config.json has no max_length: windows of {TRAINED:g} s"
    length = fields.require(name, int)
    seconds = length * hop / max(sample_rate, 1)
    if not 0 < seconds < TRAINED:  # below a frame, LMConfig.validate says so
        return seconds, None
    return TRAINED, (
        f"generation_config.json has max_length {length}, {seconds:g} s, which is less than the {TRAINED:g} s that "
        f"MusicGen is trained on: windows of {TRAINED:g} s"
    )


def text_config(tree: Mapping[str, Any], at: str = "") -> TextConfig:
    """Read the config.json of a T5, or the one inside another model's under `at` ("text_encoder.").

    Raises ConfigError with every unsupported field, or with the first that is missing or out of range.
    """
    fields = Fields(tree)
    require_supported("text encoder", _text_problems(fields, at))
    config = TextConfig(  # defaults: T5Config's, which the files of t5-base and t5-large rely on
        layers=fields.require(f"{at}num_layers", int),
        heads=fields.require(f"{at}num_heads", int),
        head_dim=fields.require(f"{at}d_kv", int),
        dim=fields.require(f"{at}d_model", int),
        hidden=fields.require(f"{at}d_ff", int),
        gated=T5_FEED_FORWARD[fields.get(f"{at}feed_forward_proj", "relu")][1],
        vocab=fields.require(f"{at}vocab_size", int),
        buckets=fields.require(f"{at}relative_attention_num_buckets", int, 32),
        max_distance=fields.require(f"{at}relative_attention_max_distance", int, 128),
        eps=fields.require(f"{at}layer_norm_epsilon", float, 1e-6),
        pad_token=fields.require(f"{at}pad_token_id", int, 0),
        eos_token=fields.require(f"{at}eos_token_id", int, 1),
    )
    config.validate()
    return config


def _text_problems(fields: Fields, at: str) -> list[str]:
    """dense_act_fn and is_gated_act repeat what feed_forward_proj says: they must agree with it."""
    problems = unsupported(fields, {"model_type": ("t5", None)}, "config.json", "transformers", at)
    feed_forward = fields.get(f"{at}feed_forward_proj", "relu")
    if not isinstance(feed_forward, str) or feed_forward not in T5_FEED_FORWARD:
        supported = ", ".join(map(repr, T5_FEED_FORWARD))
        return [*problems, f"config.json {at}feed_forward_proj: found {show(feed_forward)}, supported: {supported}"]
    for name, ours in zip(("dense_act_fn", "is_gated_act"), T5_FEED_FORWARD[feed_forward], strict=True):
        if (value := fields.get(at + name, ours)) != ours:
            problems.append(
                f"config.json {at}{name}: found {show(value)}, supported with {show(feed_forward)}: {show(ours)}"
            )
    return problems


def mert_config(tree: Mapping[str, Any]) -> MertConfig:
    """Read the config.json of a MERT, or of a HuBERT that is built as one.

    Raises ConfigError with every unsupported field, or with the first that is missing or out of range.
    """
    fields = Fields(tree)
    problems = unsupported(fields, MERT_SUPPORTED, "config.json", "transformers")
    relax = fields.require("attention_relax", float, -1.0)
    if relax > 0:
        problems.append(f"config.json attention_relax: found {show(relax)}, supported: -1.0")
    require_supported("MERT", problems)
    config = MertConfig(
        layers=fields.require("num_hidden_layers", int),
        heads=fields.require("num_attention_heads", int),
        dim=fields.require("hidden_size", int),
        hidden=fields.require("intermediate_size", int),
        channels=fields.require_list("conv_dim", int),
        kernels=fields.require_list("conv_kernel", int),
        strides=fields.require_list("conv_stride", int),
        position_kernel=fields.require("num_conv_pos_embeddings", int),
        position_groups=fields.require("num_conv_pos_embedding_groups", int),
        sample_rate=fields.require("sample_rate", int),
    )
    config.validate()
    return config


def codec_config(tree: Mapping[str, Any], at: str = "") -> CodecConfig:
    """Read the config.json of an EnCodec, or the one inside another model's under `at` ("audio_encoder.").

    Raises ConfigError with every unsupported field, or with the first that is missing or out of range.
    """
    fields = Fields(tree)
    problems = unsupported(fields, CODEC_SUPPORTED, "config.json", "transformers", at)
    dimension, inner = fields.require(f"{at}hidden_size", int), fields.get(f"{at}codebook_dim")
    if inner not in (None, dimension):
        problems.append(f"config.json {at}codebook_dim: found {show(inner)}, supported: hidden_size, {dimension}")
    require_supported("codec", problems)
    config = CodecConfig(
        sample_rate=fields.require(f"{at}sampling_rate", int),
        channels=fields.require(f"{at}audio_channels", int),
        ratios=fields.require_list(f"{at}upsampling_ratios", int),
        filters=fields.require(f"{at}num_filters", int),
        dimension=dimension,
        kernel_size=fields.require(f"{at}kernel_size", int),
        last_kernel_size=fields.require(f"{at}last_kernel_size", int),
        residual_kernel_size=fields.require(f"{at}residual_kernel_size", int),
        residual_layers=fields.require(f"{at}num_residual_layers", int),
        dilation_base=fields.require(f"{at}dilation_growth_rate", int),
        compress=fields.require(f"{at}compress", int),
        lstm_layers=fields.require(f"{at}num_lstm_layers", int),
        pad_mode=fields.require(f"{at}pad_mode", str),
        codebooks=_codebooks(fields, at),
        card=fields.require(f"{at}codebook_size", int),
    )
    config.validate()
    return config


def _codebooks(fields: Fields, at: str) -> int:
    """How many codebooks the last bandwidth [kbit/s] takes: transformers' EncodecConfig.num_quantizers."""
    bandwidths, hop = fields.require_list(f"{at}target_bandwidths", float), _hop(fields, at)
    if not bandwidths or not bandwidths[-1] > 0:
        found = show(list(bandwidths))
        raise ConfigError(f"configuration field {at}target_bandwidths: got {found}, expected numbers above 0")
    sample_rate, card = fields.require(f"{at}sampling_rate", int), fields.require(f"{at}codebook_size", int)
    frame_rate, bits = math.ceil(sample_rate / max(hop, 1)), math.ceil(math.log2(max(card, 2)))
    return int(1000 * bandwidths[-1] // (max(frame_rate, 1) * bits))


def _hop(fields: Fields, at: str) -> int:
    """Samples of a frame of the codec under `at`. Raises ConfigError."""
    ratios = fields.require_list(f"{at}upsampling_ratios", int)
    if len(ratios) > MOST["ratios"] or not all(0 <= ratio <= MOST["ratio"] for ratio in ratios):
        raise ConfigError(
            f"configuration field {at}upsampling_ratios: got {show(list(ratios))}, expected at most {MOST['ratios']} "
            f"numbers up to {MOST['ratio']}"
        )
    return math.prod(ratios)
