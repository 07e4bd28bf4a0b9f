"""audiocraft's xp.cfg -> dataclasses of clean_lm.models.config, or a ConfigError with every unsupported field.

Each reader checks its table of supported values first, then reads sizes. Nothing is guessed from a file's name.
"""

import math
from collections.abc import Mapping
from typing import Any

from clean_lm.models.config import CodecConfig, ConfigError, LMConfig, MelodyConfig, StyleConfig, require_size
from weights.errors import show, show_name
from weights.fields import Fields, Supported, require_supported, unsupported

# What a model was trained as, by the names of audiocraft's solvers. The last two are their names in audiocraft's
# files from before its release.
SOLVERS = {"musicgen": "musicgen", "audiogen": "audiogen", "lm": "musicgen", "sound_lm": "audiogen"}

# Every option of audiocraft's transformer that would make another model. The defaults are those of LMModel,
# StreamingTransformer(Layer), ConditionFuser and DelayedPatternProvider.
SUPPORTED: Supported = {
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

# conditioners.self_wav.chroma_stem, by the defaults of ChromaStemConditioner and ChromaExtractor. match_len_on_eval is
# not among them: upstream's generate sets it whatever the file says.
MELODY_SUPPORTED: Supported = {
    "argmax": (True, False),
    "eval_wavs": (None, None),
    "nfft": (None, None),
    "winlen": (None, None),
    "winhop": (None, None),
    "norm": (math.inf, math.inf),
}

# conditioners.self_wav.style, by the defaults of StyleConditioner and FeatureExtractor.
STYLE_SUPPORTED: Supported = {
    "model_name": ("mert", None),
    "batch_norm": (True, True),
    "use_middle_of_segment": (False, False),
}

# conditioners.self_wav.model: the values that are supported, and the table of each.
SELF_WAV = {"chroma_stem": MELODY_SUPPORTED, "style": STYLE_SUPPORTED}

# StyleConditioner's transformer_scale: (dim, heads, layers). Its "none", no transformer, is not supported. "tiny" is
# not upstream's: the golden style model of the tests has it.
STYLE_SCALES = {
    "xsmall": (256, 8, 4),
    "default": (512, 8, 8),
    "large": (1024, 16, 24),
    "tiny": (32, 4, 2),
}
STYLE_FEATURES = 768  # width of MERT's features, which StyleConditioner takes

# The codec, by the defaults of SEANetEncoder, SEANetDecoder, ResidualVectorQuantizer and their builders.
CODEC_SUPPORTED: Supported = {
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


def lm_config(tree: Mapping[str, Any], text_dim: int) -> LMConfig:
    """Read the `xp.cfg` of an audiocraft LM.

    `text_dim` is the width that the checkpoint's text projection takes: xp.cfg names the text encoder only.
    Raises ConfigError with every unsupported field, or with the first that is missing or out of range.
    """
    fields = Fields(tree)
    require_supported("language model", lm_problems(fields))
    codebooks = fields.require("transformer_lm.n_q", int)
    require_size("codebooks", codebooks)
    config = LMConfig(
        layers=fields.require("transformer_lm.num_layers", int),
        heads=fields.require("transformer_lm.num_heads", int),
        dim=fields.require("transformer_lm.dim", int),
        hidden_scale=fields.require("transformer_lm.hidden_scale", int),
        codebooks=codebooks,
        card=fields.require("transformer_lm.card", int),
        delays=_delays(fields, codebooks),
        text_dim=text_dim,
        text_encoder=fields.require("conditioners.description.t5.name", str),
        max_duration=fields.require("dataset.segment_duration", float),
        solver=SOLVERS[fields.require("solver", str, "musicgen")],
        sample_rate=fields.require("sample_rate", int),
        channels=fields.require("channels", int),
        cross=fields.require_list("fuser.cross", str),
        prepend=fields.require_list("fuser.prepend", str),
        self_wav=_self_wav_config(fields),
    )
    config.validate()
    return config


def lm_problems(fields: Fields) -> list[str]:
    """One line for every unsupported field of a language model's xp.cfg."""
    problems = unsupported(fields, SUPPORTED, "xp.cfg", "audiocraft")
    solver = fields.get("solver", "musicgen")
    if not isinstance(solver, str) or solver not in SOLVERS:
        problems.append(f"xp.cfg solver: found {show(solver)}, supported: {', '.join(map(repr, SOLVERS))}")
    pattern = fields.get("codebooks_pattern.modeling") or fields.get("transformer_lm.q_modeling")
    if pattern != "delay":
        problems.append(f"xp.cfg codebooks_pattern.modeling: found {show(pattern)}, supported: 'delay'")
    text = fields.get("conditioners.description.model")
    if text != "t5":
        problems.append(f"xp.cfg conditioners.description.model: found {show(text)}, supported: 't5'")
    return problems + _self_wav_problems(fields) + _stereo_problems(fields)


def _self_wav_problems(fields: Fields) -> list[str]:
    model = fields.get("conditioners.self_wav.model")
    if model is None:
        return []
    if isinstance(model, str) and model in SELF_WAV:
        return unsupported(fields, SELF_WAV[model], "xp.cfg", "audiocraft", f"conditioners.self_wav.{model}.")
    supported = ", ".join(map(repr, SELF_WAV))
    return [f"xp.cfg conditioners.self_wav.model: found {show(model)}, supported: {supported}"]


def _stereo_problems(fields: Fields) -> list[str]:
    interleaved, channels = fields.get("interleave_stereo_codebooks.use", False), fields.get("channels")
    if interleaved == (channels == 2):
        return []
    return [
        f"xp.cfg interleave_stereo_codebooks.use: found {show(interleaved)} with channels: {show(channels)}, "
        "supported: 2 channels that are interleaved, or 1"
    ]


def _delays(fields: Fields, codebooks: int) -> tuple[int, ...]:
    """Released files of 2023 may name the pattern in transformer_lm.q_modeling: delays are then 0, 1, 2, ..."""
    name = "codebooks_pattern.delay.delays"
    if fields.get("codebooks_pattern.modeling") is None or fields.get(name) is None:
        return tuple(range(codebooks))
    return fields.require_list(name, int)


def _self_wav_config(fields: Fields) -> MelodyConfig | StyleConfig | None:
    """The conditioner that takes audio, None where a model has none."""
    model = fields.get("conditioners.self_wav.model")
    if model is None:
        return None
    return melody_config(fields) if model == "chroma_stem" else style_config(fields)


def melody_config(fields: Fields) -> MelodyConfig:
    """Read conditioners.self_wav of a melody model whose options `lm_problems` has checked. Raises ConfigError."""
    at = "conditioners.self_wav.chroma_stem."
    config = MelodyConfig(
        chroma=fields.require(f"{at}n_chroma", int),
        radix2_exp=fields.require(f"{at}radix2_exp", int),
        sample_rate=fields.require(f"{at}sample_rate", int),
        duration=fields.require("dataset.segment_duration", float),
        output_dim=fields.require("transformer_lm.dim", int),
    )
    config.validate()
    return config


def style_config(fields: Fields) -> StyleConfig:
    """Read conditioners.self_wav of a style model whose options `lm_problems` has checked. Raises ConfigError."""
    at = "conditioners.self_wav.style."
    scale = fields.require(f"{at}transformer_scale", str, "default")
    if scale not in STYLE_SCALES:
        supported = ", ".join(map(repr, STYLE_SCALES))
        raise ConfigError(f"xp.cfg {at}transformer_scale: found {show(scale)}, supported: {supported}")
    dim, heads, layers = STYLE_SCALES[scale]
    config = StyleConfig(  # defaults: StyleConditioner's
        features=STYLE_FEATURES,
        dim=dim,
        heads=heads,
        layers=layers,
        levels=fields.require(f"{at}n_q_out", int, 6),
        bins=fields.require(f"{at}bins", int, 1024),
        eval_q=fields.require(f"{at}eval_q", int, 3),
        ds_factor=fields.require(f"{at}ds_factor", int, 15),
        length=fields.require(f"{at}length", float),
        sample_rate=fields.require(f"{at}sample_rate", int),
        output_dim=fields.require("transformer_lm.dim", int),
    )
    config.validate()
    return config


def codec_config(tree: Mapping[str, Any]) -> CodecConfig:
    """Read the `xp.cfg` of an audiocraft codec.

    Raises ConfigError with every unsupported field, or with the first that is missing or out of range.
    """
    fields = Fields(tree)
    problems = unsupported(fields, CODEC_SUPPORTED, "xp.cfg", "audiocraft")
    require_supported("codec", problems + _half_problems(fields) + _channel_problems(fields))
    config = CodecConfig(
        sample_rate=fields.require("encodec.sample_rate", int),
        channels=fields.require("encodec.channels", int),
        ratios=fields.require_list("seanet.ratios", int),
        filters=fields.require("seanet.n_filters", int),
        dimension=fields.require("seanet.dimension", int),
        kernel_size=fields.require("seanet.kernel_size", int),
        last_kernel_size=fields.require("seanet.last_kernel_size", int),
        residual_kernel_size=fields.require("seanet.residual_kernel_size", int),
        residual_layers=fields.require("seanet.n_residual_layers", int),
        dilation_base=fields.require("seanet.dilation_base", int),
        compress=fields.require("seanet.compress", int),
        lstm_layers=fields.require("seanet.lstm", int),
        pad_mode=fields.require("seanet.pad_mode", str),
        codebooks=fields.require("rvq.n_q", int),
        card=fields.require("rvq.bins", int),
    )
    config.validate()
    return config


def _half_problems(fields: Fields) -> list[str]:
    """seanet.encoder and seanet.decoder override seanet for one half: only the same value is supported."""
    problems = []
    for half in ("encoder", "decoder"):
        own = fields.get(f"seanet.{half}")
        for name in own if isinstance(own, Mapping) else ():
            value, both = fields.get(f"seanet.{half}.{name}"), fields.get(f"seanet.{name}")
            if f"seanet.{half}.{name}" not in CODEC_SUPPORTED and value not in (None, both):
                at = show_name(name)
                problems.append(
                    f"xp.cfg seanet.{half}.{at}: found {show(value)}, supported: {show(both)}, as seanet.{at}"
                )
    return problems


def _channel_problems(fields: Fields) -> list[str]:
    seanet, encodec = fields.get("seanet.channels"), fields.get("encodec.channels")
    return [] if seanet == encodec else [f"xp.cfg seanet.channels: found {show(seanet)}, supported: {show(encodec)}"]
