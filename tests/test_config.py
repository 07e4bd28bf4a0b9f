"""weights/audiocraft_config.py, huggingface_config.py: read as it stands, or refused by field, found and supported."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from clean_lm.models.config import ConfigError, LMConfig, MelodyConfig, StyleConfig
from weights import audiocraft_config, huggingface_config

pytestmark = [pytest.mark.weights, pytest.mark.quick]

GOLDEN = Path(__file__).parent / "golden"

XP_CFG = """
sample_rate: 32000
channels: 1
lm_model: transformer_lm
dataset: {segment_duration: 30}
conditioners: {description: {model: t5, t5: {name: t5-base, normalize_text: false}}}
fuser: {cross_attention_pos_emb: false, sum: [], prepend: [], cross: [description], input_interpolate: []}
codebooks_pattern: {modeling: delay, delay: {delays: [0, 1, 2, 3], flatten_first: 0, empty_initial: 0}}
interleave_stereo_codebooks: {use: false, per_timestep: false}
transformer_lm: {dim: 64, num_heads: 4, num_layers: 3, hidden_scale: 4, n_q: 4, card: 64, activation: gelu,
  norm_first: true, bias_ff: false, bias_attn: false, bias_proj: false, causal: true}
"""

HUGGINGFACE: dict[str, Any] = {
    "model_type": "musicgen",
    "decoder": {
        "hidden_size": 64,
        "ffn_dim": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_codebooks": 8,
        "vocab_size": 32,
        "audio_channels": 2,
    },
    "text_encoder": {"d_model": 96, "_name_or_path": "t5-base"},
    "audio_encoder": {"sampling_rate": 32000, "upsampling_ratios": [8, 5, 4, 4]},
    "generation_config": {"max_length": 1500},
}

DELETE = object()


def changed(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of `tree` with fields set by dotted name, or deleted."""
    tree = copy.deepcopy(tree)
    for name, value in changes.items():
        *path, last = name.split(".")
        at = tree
        for part in path:
            at = at[part]
        if value is DELETE:
            del at[last]
        else:
            at[last] = value
    return tree


def audiocraft(**changes: Any) -> LMConfig:
    names = {name.replace("__", "."): value for name, value in changes.items()}
    return audiocraft_config.lm_config(changed(yaml.safe_load(XP_CFG), names), text_dim=96)


def refused(**changes: Any) -> str:
    with pytest.raises(ConfigError) as error:
        audiocraft(**changes)
    return str(error.value)


def huggingface(**changes: Any) -> LMConfig:
    names = {name.replace("__", "."): value for name, value in changes.items()}
    return huggingface_config.lm_config(changed(HUGGINGFACE, names))


def test_sizes_come_from_the_file():
    assert audiocraft() == LMConfig(
        layers=3,
        heads=4,
        dim=64,
        hidden_scale=4,
        codebooks=4,
        card=64,
        delays=(0, 1, 2, 3),
        text_dim=96,
        text_encoder="t5-base",
        max_duration=30.0,
        solver="musicgen",
        sample_rate=32000,
        channels=1,
        cross=("description",),
        prepend=(),
        self_wav=None,
    )
    assert audiocraft().special_token == 64
    assert audiocraft().head_dim == 16


def released(name: str) -> LMConfig:
    tree = yaml.safe_load((Path(__file__).parent / "layouts" / f"{name}.cfg.yaml").read_text())
    return audiocraft_config.lm_config(tree, text_dim=768)


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("musicgen-melody", 1536),
        ("musicgen-melody-large", 2048),
        ("musicgen-stereo-melody", 1536),
        ("musicgen-stereo-melody-large", 2048),
    ],
)
def test_melody(name: str, dim: int):
    melody = MelodyConfig(chroma=12, radix2_exp=14, sample_rate=32000, duration=30.0, output_dim=dim)
    assert released(name).self_wav == melody
    assert (melody.n_fft, melody.hop, melody.frames) == (16384, 4096, 235)


def test_melody_of_a_duration_below_a_frame():
    assert MelodyConfig(chroma=12, radix2_exp=14, sample_rate=32000, duration=0.1, output_dim=8).frames == 5


def test_style():
    style = StyleConfig(
        features=768,
        dim=512,
        heads=8,
        layers=8,
        levels=6,
        bins=1024,
        eval_q=3,
        ds_factor=15,
        length=3.0,
        sample_rate=32000,
        output_dim=1536,
    )
    assert released("musicgen-style").self_wav == style
    assert style.hidden == 2048


@pytest.mark.parametrize("name", ["musicgen-small", "audiogen-medium"])
def test_no_conditioner_of_sounds(name: str):
    assert released(name).self_wav is None


def test_huggingface_sizes():
    config = huggingface()
    assert (config.layers, config.heads, config.dim, config.hidden_scale) == (3, 4, 64, 4)
    assert (config.codebooks, config.card, config.channels) == (8, 32, 2)
    assert config.delays == (0, 0, 1, 1, 2, 2, 3, 3)
    assert (config.text_dim, config.text_encoder, config.max_duration) == (96, "t5-base", 30.0)
    assert config.solver == "musicgen"


def test_defaults_that_are_ours_may_be_absent():
    for name in ("interleave_stereo_codebooks", "codebooks_pattern__delay__delays"):
        assert audiocraft(**{name: DELETE}) == audiocraft()
    assert huggingface(decoder__audio_channels=DELETE).delays == tuple(range(8))


@pytest.mark.parametrize("kind", [int, float])
def test_duration_is_a_number_of_seconds(kind: type):
    assert audiocraft(dataset__segment_duration=kind(10)).max_duration == 10.0


@pytest.mark.parametrize(
    ("solver", "ours"),
    [
        ("musicgen", "musicgen"),
        ("audiogen", "audiogen"),
        ("lm", "musicgen"),
        ("sound_lm", "audiogen"),
        ("${label}", "audiogen"),
    ],
)
def test_solver(solver: str, ours: str):
    """Older files have audiocraft's older names; one that says nothing is a MusicGen's, as all above."""
    assert audiocraft(solver=solver, label="sound_lm").solver == ours


def test_pattern_of_2023_files():
    config = audiocraft(codebooks_pattern={"modeling": None}, transformer_lm__q_modeling="delay")
    assert config.delays == (0, 1, 2, 3)


def test_options_refused_by_name_and_value():
    package = torch.load(GOLDEN / "options" / "state_dict.bin", weights_only=True)
    with pytest.raises(ConfigError) as error:
        audiocraft_config.lm_config(yaml.safe_load(package["xp.cfg"]), text_dim=768)
    assert str(error.value).splitlines()[1:] == [
        "  xp.cfg transformer_lm.bias_attn: found True, supported: False",
        "  xp.cfg transformer_lm.bias_ff: found True, supported: False",
        "  xp.cfg transformer_lm.bias_proj: found True, supported: False",
        "  xp.cfg transformer_lm.max_period: found 5000, supported: 10000",
        "  xp.cfg transformer_lm.positional_scale: found 0.8, supported: 1",
        "  xp.cfg transformer_lm.layer_scale: found 0.1, supported: None",
        "  xp.cfg transformer_lm.qk_layer_norm: found True, supported: False",
        "  xp.cfg transformer_lm.qk_layer_norm_cross: found True, supported: False",
        "  xp.cfg fuser.cross_attention_pos_emb: found True, supported: False",
    ]


@pytest.mark.parametrize(
    ("field", "meaning"),
    [
        ("norm_first", "False"),
        ("activation", "'relu'"),
        ("causal", "False"),
        ("bias_attn", "True"),
        ("bias_ff", "True"),
        ("bias_proj", "True"),
    ],
)
def test_absent_field_means_audiocraft_default(field: str, meaning: str):
    line = f"xp.cfg transformer_lm.{field}: found nothing (audiocraft then takes {meaning}), supported:"
    assert line in refused(**{f"transformer_lm__{field}": DELETE})


def test_null_is_a_value():
    assert "transformer_lm.norm_first: found None, supported: True" in refused(transformer_lm__norm_first=None)
    assert "fuser.sum: found None, supported: []" in refused(fuser__sum=None)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("codebooks_pattern__modeling", "parallel", ["modeling", "'parallel'", "'delay'"]),
        ("codebooks_pattern__delay__flatten_first", 2, ["flatten_first", "2", "0"]),
        ("codebooks_pattern__delay__delays", 3, ["delays", "3", "list"]),
        ("codebooks_pattern__delay__delays", [0, "1", 2, 3], ["delays", "'1'", "list of int"]),
        ("codebooks_pattern__delay__delays", [0, True, 2, 3], ["delays", "True", "list of int"]),
        ("codebooks_pattern__delay__delays", [0, 1], ["delays [0, 1]", "4 ascending"]),
        ("codebooks_pattern__delay__delays", [3, 2, 1, 0], ["delays [3, 2, 1, 0]", "ascending"]),
        ("codebooks_pattern__delay__delays", [-1, 0, 1, 2], ["delays [-1", "from 0 up"]),
        ("conditioners__description__model", "clap", ["conditioners.description.model", "'clap'", "'t5'"]),
        ("conditioners__description__t5__normalize_text", True, ["normalize_text", "True"]),
        ("conditioners__description__t5__name", 5, ["t5.name", "5", "str"]),
        ("conditioners", None, ["conditioners.description.model", "None"]),
        ("fuser__cross", None, ["fuser.cross", "needed"]),
        ("fuser__cross", "description", ["fuser.cross", "'description'", "list"]),
        ("fuser__cross", ["description", "genre"], ["fuser.cross", "genre", "description in one of them"]),
        ("fuser__cross", [], ["fuser.cross []", "description in one of them"]),
        ("transformer_lm", None, ["transformer_lm.norm_first", "nothing"]),
        ("transformer_lm", [1], ["transformer_lm.norm_first", "nothing"]),
        ("transformer_lm__dim", None, ["transformer_lm.dim", "needed"]),
        ("transformer_lm__dim", "64", ["transformer_lm.dim", "'64'", "int"]),
        ("transformer_lm__dim", [64], ["transformer_lm.dim", "[64]", "int"]),
        ("transformer_lm__dim", True, ["transformer_lm.dim", "True", "int"]),
        ("transformer_lm__dim", 64.5, ["transformer_lm.dim", "64.5", "int"]),
        ("transformer_lm__dim", 66, ["dim 66", "4 heads"]),
        ("transformer_lm__dim", 0, ["dim 0", "above 0"]),
        ("transformer_lm__num_heads", 0, ["heads 0", "above 0"]),
        ("transformer_lm__num_layers", -1, ["layers -1", "above 0"]),
        ("transformer_lm__n_q", 0, ["codebooks 0", "above 0"]),
        ("dataset__segment_duration", DELETE, ["dataset.segment_duration", "needed"]),
        ("dataset__segment_duration", float("nan"), ["max_duration nan", "above 0"]),
        ("sample_rate", 0, ["sample_rate 0", "above 0"]),
        ("channels", 2, ["interleave_stereo_codebooks.use", "False", "channels: 2"]),
        ("interleave_stereo_codebooks__use", True, ["interleave_stereo_codebooks.use", "True", "channels: 1"]),
        ("channels", 3, ["channels 3", "1 or 2"]),
        ("lm_model", DELETE, ["lm_model", "nothing", "'transformer_lm'"]),
        ("solver", "diffusion", ["xp.cfg solver", "'diffusion'", "'musicgen', 'audiogen', 'lm', 'sound_lm'"]),
        ("solver", ["musicgen"], ["xp.cfg solver", "['musicgen']"]),
        ("solver", None, ["xp.cfg solver", "None"]),
    ],
)
def test_refused(field: str, value: Any, words: list[str]):
    message = refused(**{field: value})
    assert [word for word in words if word not in message] == [], message


def test_references_are_followed():
    config = audiocraft(sample_rate="${rates.lm}", rates={"lm": "${transformer_lm.dim}"})
    assert config.sample_rate == 64
    whole = audiocraft(transformer_lm="${other}", other=yaml.safe_load(XP_CFG)["transformer_lm"])
    assert whole == audiocraft()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sample_rate": "${sample_rate}"}, ["sample_rate refers to itself"]),
        ({"sample_rate": "${a}", "a": "${b}", "b": "${a}"}, ["sample_rate refers to itself", "a -> b -> a"]),
        ({"transformer_lm": "${transformer_lm.dim}"}, ["refers to itself"]),
        ({"sample_rate": "${nowhere.rate}"}, ["sample_rate refers to nowhere.rate, which is absent"]),
        ({"transformer_lm__norm_first": "${nowhere}"}, ["norm_first refers to nowhere, which is absent"]),
        ({"sample_rate": "${oc.env:USER}"}, ["sample_rate", "'${oc.env:USER}'", "save the checkpoint again"]),
        ({"conditioners__description__t5__name": "${oc.env:T5}"}, ["t5.name", "'${oc.env:T5}'", "save the"]),
        ({"conditioners__description__t5__name": "t5-${size}"}, ["t5.name", "'t5-${size}'", "save the"]),
    ],
)
def test_references_that_lead_nowhere(changes: dict[str, Any], words: list[str]):
    message = refused(**changes)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("decoder__activation_function", "relu", ["decoder.activation_function", "'relu'", "'gelu'"]),
        ("decoder__scale_embedding", True, ["decoder.scale_embedding", "True"]),
        ("decoder__ffn_dim", 100, ["decoder.ffn_dim", "100", "multiple of hidden_size 64"]),
        ("decoder__hidden_size", 0, ["hidden_size 0"]),
        ("decoder__audio_channels", "2", ["decoder.audio_channels", "'2'", "int"]),
        ("decoder__audio_channels", 0, ["channels 0", "1 or 2"]),
        ("decoder", None, ["decoder.hidden_size", "needed"]),
        ("text_encoder._name_or_path", 5, ["text_encoder._name_or_path", "5", "str"]),
        ("text_encoder", [], ["text_encoder.d_model", "needed"]),
        ("audio_encoder__upsampling_ratios", ["8"], ["upsampling_ratios", "'8'", "int"]),
        ("audio_encoder__upsampling_ratios", 640, ["upsampling_ratios", "640", "list"]),
        ("audio_encoder__sampling_rate", 0, ["sample_rate 0"]),
        ("generation_config__max_length", "1500", ["generation_config.max_length", "'1500'", "int"]),
        ("generation_config__max_length", 0, ["max_duration 0"]),
    ],
)
def test_huggingface_refused(field: str, value: Any, words: list[str]):
    with pytest.raises(ConfigError) as error:
        huggingface(**{field: value})
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)
