"""Hugging Face's MusicGen Melody, live: a random model of transformers', the folder that it saves, and ours from it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    EncodecConfig,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForConditionalGeneration,
    T5Config,
)
from transformers.audio_utils import chroma_filter_bank
from transformers.models.musicgen_melody.feature_extraction_musicgen_melody import MusicgenMelodyFeatureExtractor

from clean_lm.generation import Sampling
from clean_lm.language_model import LanguageModel
from clean_lm.models.chroma import filters
from clean_lm.models.config import ConfigError, MelodyConfig
from clean_lm.session import open_graph
from export import codec, text, verify
from export.lm import export
from tests.support import GOLDEN
from tests.tiny_models import to_huggingface
from weights.lm import load

pytestmark = pytest.mark.parity

TEXT_DIM, COEF, FRAMES = 10, 3.0, 14
CODEC: dict[str, Any] = {
    "sampling_rate": 32_000,
    "num_filters": 4,
    "hidden_size": 8,
    "codebook_dim": 8,
    "upsampling_ratios": [32, 20],
    "target_bandwidths": [1.0],
    "codebook_size": 32,
    "norm_type": "weight_norm",
    "use_causal_conv": False,
    "use_conv_shortcut": False,
}


def melody_model(channels: int = 1, dim: int = 24, seed: int = 0, **config: Any) -> Any:
    """A random model; `dim` 12 makes its width that of its chroma, `d_model` that of its text."""
    torch.manual_seed(seed)
    decoder = MusicgenMelodyDecoderConfig(
        vocab_size=32, num_hidden_layers=2, num_attention_heads=3, hidden_size=dim, ffn_dim=2 * dim,
        num_codebooks=4 * channels, audio_channels=channels, dropout=0.0, pad_token_id=32, bos_token_id=32,
    )  # fmt: skip
    t5 = T5Config(
        d_model=config.pop("d_model", TEXT_DIM), num_layers=1, num_heads=1, d_kv=8, d_ff=8, vocab_size=16,
        tie_word_embeddings=True,  # pyright: ignore[reportCallIssue]
    )  # fmt: skip
    sizes = {"text_encoder": t5, "audio_encoder": EncodecConfig(**CODEC), "decoder": decoder}
    model = MusicgenMelodyForConditionalGeneration(MusicgenMelodyConfig(**sizes, chroma_length=8, **config)).eval()
    for name, parameter in model.named_parameters():
        if not name.startswith("audio_encoder."):
            torch.nn.init.normal_(parameter, mean=float(name.endswith("norm.weight")), std=0.4)
    model.generation_config.decoder_start_token_id = model.generation_config.pad_token_id = 32
    model.generation_config.bos_token_id = 32
    model.generation_config.max_length = 1500
    return model


def extracted(audio: np.ndarray) -> Tensor:
    """transformers' own chroma of audio [M, samples]; its torchaudio, which tests do without, by torch.stft."""
    n_fft, hop = 16_384, 4096
    window = torch.hann_window(n_fft)

    def spectrogram(wav: Tensor) -> Tensor:
        frames = torch.stft(wav, n_fft, hop, window=window, center=True, pad_mode="reflect", return_complex=True)
        return (frames / window.pow(2).sum().sqrt()).abs().square()

    bank = chroma_filter_bank(sampling_rate=32_000, num_frequency_bins=n_fft, tuning=0, num_chroma=12)
    extractor = SimpleNamespace(n_fft=n_fft, spectrogram=spectrogram, chroma_filters=torch.from_numpy(bank).float())
    return MusicgenMelodyFeatureExtractor._torch_extract_fbank_features(extractor, torch.from_numpy(audio))  # pyright: ignore


@torch.inference_mode()
def generated(model: Any, ids: Tensor, mask: Tensor, features: Tensor | None) -> np.ndarray:
    """Their greedy tokens [B, K, FRAMES], caught on their way to the codec."""
    caught = []

    def decode(codes: Tensor, **_: Any) -> Any:
        caught.append(codes[0])
        return SimpleNamespace(audio_values=torch.zeros(codes.shape[1], 1, 4))

    model.audio_encoder.decode = decode
    model.generate(
        input_ids=ids, attention_mask=mask, input_features=features, do_sample=False, guidance_scale=COEF,
        max_length=FRAMES + 4, use_cache=False,
    )  # fmt: skip
    del model.audio_encoder.decode
    if model.config.decoder.audio_channels == 1:
        return caught[0].numpy()
    return torch.stack(caught, dim=2).flatten(1, 2).numpy()


@pytest.mark.parametrize("melody", [True, False])
@pytest.mark.parametrize(
    ("channels", "config"),
    [(1, {}), (2, {"seed": 1}), (1, {"dim": 12, "seed": 2}), (1, {"d_model": 24, "seed": 3})],
)
def test_melody_tokens_of_transformers(tmp_path: Path, channels: int, config: dict[str, Any], melody: bool):
    """With guidance, from texts of two lengths and two melodies, or none; without projections where widths agree."""
    model = melody_model(channels, **config)
    model.save_pretrained(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "bundle")
    ids, mask = torch.tensor([[3, 4, 5, 1], [6, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    rng = np.random.default_rng(0)
    pitch = np.sin(2 * np.pi * np.array([[220.0], [311.1]]) * np.arange(40_000) / 32_000)
    audio = (pitch + 0.02 * rng.standard_normal(pitch.shape)).astype(np.float32)
    theirs = generated(model, ids, mask, extracted(audio) if melody else None)

    with torch.inference_mode():
        states = model.text_encoder(ids, attention_mask=mask).last_hidden_state.numpy()
    ours = LanguageModel.load(tmp_path / "bundle")
    graph = open_graph(ours.manifest, "lm_melody")
    wavs = list(graph.run({"audio": audio})["self_wav"]) if melody else None
    tokens = ours.generate_codes(
        text_states=[row[: int(size)] for row, size in zip(states, mask.sum(dim=1), strict=True)],
        self_wav=(lambda _: wavs) if wavs else None,
        frames=FRAMES,
        sampling=Sampling(use_sampling=False, cfg_coef=COEF),
    )
    assert theirs.shape == (2, 4 * channels, FRAMES)
    assert len(np.unique(theirs)) > 4
    np.testing.assert_array_equal(tokens, theirs)


def test_melody_chroma_of_transformers(tmp_path: Path):
    """The prefix of a melody is their projection of their chroma, repeated to chroma_length or cut."""
    model = melody_model()
    model.save_pretrained(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "bundle")
    graph = open_graph(LanguageModel.load(tmp_path / "bundle").manifest, "lm_melody")
    for samples in (5000, 20_000, 60_000):
        audio = 0.3 * np.random.default_rng(samples).standard_normal((2, samples)).astype(np.float32)
        with torch.inference_mode():
            chroma = extracted(audio)
            theirs = model.audio_enc_to_dec_proj(chroma.repeat(1, 8, 1)[:, :8]).numpy()
        np.testing.assert_allclose(graph.run({"audio": audio})["self_wav"], theirs, atol=1e-6)


def test_melody_filters_of_transformers():
    melody = load(GOLDEN / "melody").config.self_wav
    bank = chroma_filter_bank(sampling_rate=32_000, num_frequency_bins=16_384, tuning=0, num_chroma=12)
    np.testing.assert_allclose(filters(melody).numpy().T, bank, atol=1e-6)  # pyright: ignore[reportArgumentType]


def renamed(folder: Path) -> Any:
    """audiocraft's golden melody model as transformers saves it."""
    golden = load(GOLDEN / "melody").config
    state = torch.load(GOLDEN / "melody" / "state_dict.bin", weights_only=True)["best_state"]
    at = "condition_provider.conditioners.self_wav."
    state = {name.replace(f"{at}output_proj", "audio_enc_to_dec_proj"): tensor for name, tensor in state.items()}
    window = state.pop(f"{at}chroma.spec.window")
    torch.testing.assert_close(torch.hann_window(len(window)), window, atol=0, rtol=0)
    decoder = MusicgenMelodyDecoderConfig(
        vocab_size=golden.card, num_hidden_layers=golden.layers, num_attention_heads=golden.heads,
        hidden_size=golden.dim, ffn_dim=golden.hidden, num_codebooks=golden.codebooks, pad_token_id=golden.card,
        bos_token_id=golden.card,
    )  # fmt: skip
    t5 = T5Config(d_model=golden.text_dim, num_layers=1, num_heads=1, d_kv=8, d_ff=8, vocab_size=8)
    config = MusicgenMelodyConfig(text_encoder=t5, audio_encoder=EncodecConfig(**CODEC), decoder=decoder)
    model = MusicgenMelodyForConditionalGeneration(config)
    left = model.load_state_dict(to_huggingface(state), strict=False)
    assert not left.unexpected_keys
    assert not [key for key in left.missing_keys if not key.startswith(("text_encoder.", "audio_encoder."))]
    model.save_pretrained(folder)
    return golden


def test_melody_of_audiocraft_in_either_file(tmp_path: Path):
    """The same weights in transformers' layout make upstream's tokens, and the same prefix of 235 frames."""
    golden = renamed(tmp_path / "model")
    export(tmp_path / "model", tmp_path / "bundle", max_duration=golden.max_duration)
    assert verify.golden(tmp_path / "bundle", GOLDEN / "melody")[1] == []
    ours = load(tmp_path / "model").config
    assert isinstance(ours.self_wav, MelodyConfig)
    assert isinstance(golden.self_wav, MelodyConfig)
    assert ours.self_wav.frames == golden.self_wav.frames == 235
    assert (ours.prepend, ours.cross, ours.delays) == (golden.prepend, golden.cross, golden.delays)


def test_melody_folder_holds_codec_and_text(tmp_path: Path):
    model = melody_model()
    model.save_pretrained(tmp_path / "model")
    codec.export(tmp_path / "model", tmp_path / "codec")
    shutil_tokenizer(tmp_path / "model")
    text.export(tmp_path / "model", tmp_path / "text")
    with torch.inference_mode():
        states = model.text_encoder(torch.tensor([[3, 4, 1]])).last_hidden_state.numpy()
    from clean_lm.manifest import Manifest

    graph = open_graph(Manifest.read(tmp_path / "text"), "text_encoder")
    ours = graph.run({"input_ids": np.array([[3, 4, 1]]), "attention_mask": np.ones((1, 3), np.int64)})
    np.testing.assert_allclose(ours["last_hidden_state"], states, atol=1e-5)


def shutil_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, processors

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("preprocessor_config.json", {"hop_length": 2048}, ["hop_length: found 2048, supported: 4096"]),
        ("preprocessor_config.json", {"n_fft": 12_000}, ["n_fft: found 12000, supported: a power of 2"]),
        ("preprocessor_config.json", {"num_chroma": 24}, ["num_chroma: found 24, supported: 12"]),
        ("preprocessor_config.json", {"sampling_rate": 16_000}, ["sampling_rate: found 16000, supported: 32000"]),
        ("config.json", {"chroma_length": 3}, ["chroma_length: found 3, supported: 5 or more"]),
        ("config.json", {"num_chroma": "12"}, ["num_chroma", "'12'", "int"]),
    ],
)
def test_melody_of_another_kind_is_refused(tmp_path: Path, file: str, changes: dict[str, Any], words: list[str]):
    melody_model().save_pretrained(tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | changes))
    with pytest.raises(ConfigError) as error:
        load(tmp_path)
    assert [word for word in words if word not in str(error.value)] == [], str(error.value)
