"""The style conditioner beside upstream's arrays, stage by stage, and beside torch.nn's own layers, through ONNX too.

Differences are shares of the largest value; codes are equal or they are not.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from clean_lm.models.style import Style
from clean_lm.models.transformer import periods, sinusoid
from export.conditioner import write_graph
from weights.lm import SELF_WAV, load
from weights.mapping import Model, fill

GOLDEN = Path(__file__).parent / "golden" / "style"
SHARE = 1e-5

Run = Callable[[np.ndarray, int], np.ndarray]


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def model() -> Model:
    return load(GOLDEN)


@pytest.fixture(scope="module")
def style(model: Model) -> Style:
    return fill(Style(model.config.self_wav), model.weights("style"))


@pytest.fixture(scope="module")
def graph(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The exported graph: features, eval_q -> self_wav."""
    folder = tmp_path_factory.mktemp("style")
    session = ort.InferenceSession(str(folder / f"{write_graph(model, folder)}.onnx"))
    return lambda x, q: np.asarray(session.run(["self_wav"], {"features": x, "eval_q": np.array(q)})[0])


def close(ours: Tensor | np.ndarray, upstream: np.ndarray) -> None:
    assert ours.shape == upstream.shape
    assert np.abs(np.asarray(ours) - upstream).max() <= SHARE * np.abs(upstream).max()


# Upstream's arrays


def test_embedding(golden, style: Style):
    """The golden features are those of every 15th frame."""
    g = golden("style")
    close(torch.from_numpy(g["style.mert"]) @ style.embed + style.embed_bias, g["style.embed"][:, ::15])


def test_stages(golden, style: Style):
    g = golden("style")
    close(style.transform(torch.from_numpy(g["style.embed"])), g["style.transformer"])
    close(style.normalize(torch.from_numpy(g["style.transformer"])), g["style.bn"])
    codes = style.quantize(torch.from_numpy(g["style.bn"]))
    assert codes.dtype == torch.int64
    np.testing.assert_array_equal(codes[:, :3], g["style.codes"])
    close(style.dequantize(codes[:, :, ::15], torch.tensor(3)), g["style.out"])


@pytest.mark.parametrize("case", ["desc", "two"])
@pytest.mark.parametrize("through", ["torch", "onnx"])
def test_conditions(golden, style: Style, graph: Run, case: str, through: str):
    """Of features that embed as upstream's do; its rows are the excerpt, then those of none, which are zero."""
    g, upstream = golden("style"), golden("style")[f"cond.{case}.self_wav"]
    wide = torch.from_numpy(g["style.embed"][:1]).double() - style.embed_bias.double()
    features = (wide @ torch.linalg.pinv(style.embed.double())).float()
    ours = style(features, torch.tensor(3)).numpy() if through == "torch" else graph(features.numpy(), 3)
    close(ours, upstream[:1])
    assert not upstream[1:].any()


# Any length, any number of levels


class Reference:
    """The same checkpoint in torch.nn's layers, in float64."""

    def __init__(self):
        package = torch.load(GOLDEN / "state_dict.bin", weights_only=True)["best_state"]
        at = f"{SELF_WAV}."
        state = {name.removeprefix(at): t.double() for name, t in package.items() if name.startswith(at)}
        self.embed, self.output_proj = (
            nn.Linear(*state[f"{name}.weight"].T.shape, dtype=torch.float64) for name in ("embed", "output_proj")
        )
        for name in ("embed", "output_proj"):
            getattr(self, name).load_state_dict({part: state[f"{name}.{part}"] for part in ("weight", "bias")})
        self.layers = [self.layer(state, f"transformer.layers.{i}.") for i in range(2)]
        self.batch_norm = nn.BatchNorm1d(32, affine=False, dtype=torch.float64).eval()
        self.batch_norm.load_state_dict({n: state[f"batch_norm.{n}"] for n in ("running_mean", "running_var")}, False)
        self.codebooks = [state[f"rvq.vq.layers.{i}._codebook.embed"] for i in range(6)]

    @staticmethod
    def layer(state: dict[str, Tensor], at: str) -> nn.Module:
        """torch.nn's pre-norm layer, whose biases are zero where the checkpoint has none."""
        layer = nn.TransformerEncoderLayer(
            32, 4, 128, dropout=0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
        )
        none = {name: torch.zeros_like(t) for name, t in layer.state_dict().items() if name.endswith("bias")}
        theirs = {name: t for name in layer.state_dict() if (t := state.get(at + name)) is not None}
        layer.load_state_dict(none | theirs)
        return layer.eval()

    def __call__(self, features: Tensor, eval_q: int) -> np.ndarray:
        x = self.embed(features.double())
        x = x + sinusoid(torch.arange(x.shape[1]), periods(32)).double()
        for layer in self.layers:
            x = layer(x)
        left = self.batch_norm(x.transpose(1, 2)).transpose(1, 2)
        told = torch.zeros_like(left)
        for vectors in self.codebooks[:eval_q]:
            nearest = vectors[torch.cdist(left, vectors.expand(len(left), -1, -1)).argmin(dim=2)]
            told, left = told + nearest, left - nearest
        return self.output_proj(told[:, ::15]).numpy()


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


def features(rows: int, frames: int) -> Tensor:
    return torch.randn(rows, frames, 768, generator=torch.Generator().manual_seed(frames))


@pytest.mark.parametrize("eval_q", range(1, 7))
def test_levels(style: Style, graph: Run, reference: Reference, eval_q: int):
    x = features(2, 61)
    theirs = reference(x, eval_q)
    close(style(x, torch.tensor(eval_q)), theirs)
    close(graph(x.numpy(), eval_q), theirs)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("frames", [1, 2, 14, 15, 16, 224, 338])
def test_lengths(style: Style, graph: Run, reference: Reference, frames: int, rows: int):
    x = features(rows, frames)
    theirs = reference(x, 3)
    assert theirs.shape == (rows, -(-frames // 15), 56)
    close(style(x, torch.tensor(3)), theirs)
    close(graph(x.numpy(), 3), theirs)
