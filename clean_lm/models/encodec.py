"""MusicGen's codec, EnCodec: SEANet's convolutions around an LSTM, and a residual vector quantizer. Stateless.

    Encoder     audio -> latent, one vector a frame -> a code of every codebook
    Decoder     codes -> the sum of their vectors -> latents -> audio; as StreamDecoder, a few frames at a time

B rows, K codebooks, T frames of `hop` samples. Source: Defossez et al. 2022, "High Fidelity Neural Audio Compression".
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from clean_lm.models.config import CodecConfig
from clean_lm.models.quantizer import quantize
from clean_lm.models.transformer import weight


class Recurrence(Protocol):
    """How one layer of an LSTM runs: StandardRecurrence in PyTorch, OnnxRecurrence for export."""

    def __call__(self, x: Tensor, w: Tensor, r: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, B, C], weights [1, 4C, C] of inputs and of states, biases [1, 8C] of both, state [2, B, C]: h and c.

        Rows of the weights are the gates i, o, f, c, as ONNX orders them.
        Returns h after every frame [T, B, C], and the state after the last.
        """
        ...


class StandardRecurrence:
    """Plain PyTorch."""

    def __call__(self, x: Tensor, w: Tensor, r: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if not len(x):  # which torch.lstm refuses
            return x, state
        b_w, b_r = b.chunk(2, dim=1)
        parameters = [torch_gates(part[0]) for part in (w, r, b_w, b_r)]
        hidden, h, c = torch.lstm(x, state.split(1), parameters, True, 1, 0.0, False, False, False)
        return hidden, torch.cat([h, c])


class OnnxRecurrence:
    """ONNX's LSTM operator. Exported from torch.lstm it would have a fixed number of frames. Export only."""

    def __call__(self, x: Tensor, w: Tensor, r: Tensor, b: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        frames, rows, width = x.shape
        hidden, h, c = torch.onnx.ops.symbolic_multi_out(
            "LSTM",
            [x, w, r, b, None, *state.split(1)],
            attrs={"hidden_size": width},
            dtypes=[x.dtype] * 3,
            shapes=[(frames, 1, rows, width), (1, rows, width), (1, rows, width)],
        )
        some = x.new_ones(frames).sum() > 0  # after 0 frames ONNX Runtime leaves the state undefined
        return hidden[:, 0], torch.where(some, torch.cat([h, c]), state)


def onnx_gates(rows: Tensor) -> Tensor:
    """The gates i, f, g, o of PyTorch, stacked [4C, ...], as i, o, f, c of ONNX (g and c are one)."""
    i, f, g, o = rows.chunk(4)
    return torch.cat([i, o, f, g])


def torch_gates(rows: Tensor) -> Tensor:
    """The inverse of onnx_gates."""
    i, o, f, c = rows.chunk(4)
    return torch.cat([i, f, c, o])


class LSTM(nn.Module):
    """Layers of LSTM over time, and a skip connection around them all."""

    def __init__(self, width: int, layers: int, recurrence: Recurrence):
        super().__init__()
        self.recurrence = recurrence
        self.w = nn.ParameterList(weight(1, 4 * width, width) for _ in range(layers))
        self.r = nn.ParameterList(weight(1, 4 * width, width) for _ in range(layers))
        self.b = nn.ParameterList(weight(1, 8 * width) for _ in range(layers))

    def start(self, x: Tensor) -> Tensor:
        """The state before the first frame of x [B, C, T]."""
        return x.new_zeros(len(self.w), 2, x.shape[0], x.shape[1])

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, C, T], state [layers, 2, B, C] -> [B, C, T], the state after them."""
        hidden, states = rearrange(x, "b c t -> t b c"), []
        for w, r, b, before in zip(self.w, self.r, self.b, state.unbind(), strict=True):
            hidden, after = self.recurrence(hidden, w, r, b, before)
            states.append(after)
        return x + rearrange(hidden, "t b c -> b c t"), torch.stack(states)


class Conv(nn.Module):
    """A convolution over time, padded so that N samples become ceil(N / stride): [B, C, N] -> [B, C', ceil(N / s)].

    left  | samples          | lacking | right      lacking: what completes the last stride
    3     | 0 1 2 3 4 5 6 7 8 | 3       | 2          kernel 8, stride 4: 5 in all beside it, an odd one goes left
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, pad_mode: str, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.stride, self.dilation = stride, dilation
        total = (kernel - 1) * dilation + 1 - stride
        self.left, self.right = total - total // 2, total // 2
        self.reflect = pad_mode == "reflect"
        self.weight, self.bias = weight(outputs, inputs, kernel), weight(outputs)

    def forward(self, x: Tensor) -> Tensor:
        right = self.right + -x.shape[-1] % self.stride
        x = reflect(x, self.left, right) if self.reflect else F.pad(x, (self.left, right))
        return F.conv1d(x, self.weight, self.bias, self.stride, dilation=self.dilation)


def reflect(x: Tensor, left: int, right: int) -> Tensor:
    """Mirror x [B, C, N] at its ends -> [B, C, left + N + right].

    Audio that is too short to be mirrored is first extended by zeros, as in audiocraft's pad1d:

    left 3, right 2    a b   is   z z b | a b | z z        the mirrors are a, and the last of a b z z
    """
    length = x.shape[-1]
    last = torch.sym_max(torch.sym_max(left, right), length - 1)
    before = torch.arange(left, 0, -1)
    after = last - (torch.arange(length, length + right) - last).abs()
    edges = [torch.where(at < length, x.index_select(-1, at.clamp(max=length - 1)), 0) for at in (before, after)]
    return torch.cat([edges[0], x, edges[1]], dim=-1)


class ConvTranspose(nn.Module):
    """The transpose of a strided Conv: [B, C, N] -> [B, C', N x stride]. An odd sample of padding goes left."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride = stride
        self.weight, self.bias = weight(inputs, outputs, 2 * stride), weight(outputs)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stride - self.stride // 2, self.stride // 2
        return F.conv_transpose1d(x, self.weight, self.bias, self.stride, padding=left, output_padding=left - right)


class Residual(nn.Module):
    """A dilated convolution to fewer channels, one of kernel 1 back, and a skip connection around both."""

    def __init__(self, c: CodecConfig, width: int, dilation: int):
        super().__init__()
        hidden = width // c.compress
        self.narrow = Conv(width, hidden, c.residual_kernel_size, c.pad_mode, dilation=dilation)
        self.widen = Conv(hidden, width, 1, c.pad_mode)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.widen(F.elu(self.narrow(F.elu(x))))


class EncoderBlock(nn.Module):
    """Residual blocks, then a convolution of stride `ratio` that doubles the channels."""

    def __init__(self, c: CodecConfig, width: int, ratio: int):
        super().__init__()
        self.residuals = nn.ModuleList(Residual(c, width, c.dilation_base**j) for j in range(c.residual_layers))
        self.conv = Conv(width, 2 * width, 2 * ratio, c.pad_mode, stride=ratio)

    def forward(self, x: Tensor) -> Tensor:
        for residual in self.residuals:
            x = residual(x)
        return self.conv(F.elu(x))


class DecoderBlock(nn.Module):
    """A transposed convolution of stride `ratio` that halves the channels, then residual blocks."""

    def __init__(self, c: CodecConfig, width: int, ratio: int):
        super().__init__()
        self.conv = ConvTranspose(width, width // 2, ratio)
        self.residuals = nn.ModuleList(Residual(c, width // 2, c.dilation_base**j) for j in range(c.residual_layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.elu(x))
        for residual in self.residuals:
            x = residual(x)
        return x


class Encoder(nn.Module):
    """Audio at the codec's rate -> codes."""

    def __init__(self, c: CodecConfig, recurrence: Recurrence):
        super().__init__()
        self.first = Conv(c.channels, c.filters, c.kernel_size, c.pad_mode)
        self.stages = nn.ModuleList(
            EncoderBlock(c, c.filters * 2**i, ratio) for i, ratio in enumerate(reversed(c.ratios))
        )
        self.lstm = LSTM(c.width, c.lstm_layers, recurrence)
        self.last = Conv(c.width, c.dimension, c.last_kernel_size, c.pad_mode)
        self.codebooks = nn.ParameterList(weight(c.card, c.dimension) for _ in range(c.codebooks))

    def forward(self, audio: Tensor) -> Tensor:
        """audio [B, channels, samples], samples > 0 -> codes int64 [B, K, T], T = ceil(samples / hop)."""
        return self.quantize(self.latent(audio))

    def latent(self, audio: Tensor) -> Tensor:
        """audio [B, channels, samples] -> [B, dimension, T]."""
        x = self.first(audio)
        for stage in self.stages:
            x = stage(x)
        x, _ = self.lstm(x, self.lstm.start(x))
        return self.last(F.elu(x))

    def quantize(self, latent: Tensor) -> Tensor:
        """latent [B, dimension, T] -> codes int64 [B, K, T]: each codebook quantizes what those before it left."""
        return quantize(rearrange(latent, "b d t -> b t d"), self.codebooks)


class DecoderLayers(nn.Module):
    """The layers that Decoder and StreamDecoder share."""

    def __init__(self, config: CodecConfig, recurrence: Recurrence):
        super().__init__()
        c = self.config = config
        self.codebooks = weight(c.codebooks * c.card, c.dimension)  # one table after the other
        self.first = Conv(c.dimension, c.width, c.kernel_size, c.pad_mode)
        self.lstm = LSTM(c.width, c.lstm_layers, recurrence)
        self.stages = nn.ModuleList(DecoderBlock(c, c.width // 2**i, ratio) for i, ratio in enumerate(c.ratios))
        self.last = Conv(c.filters, c.channels, c.last_kernel_size, c.pad_mode)

    def vectors(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, T] -> the sum of their vectors, through the first convolution: [B, C, T]."""
        table = torch.arange(self.config.codebooks)[:, None] * self.config.card
        return self.first(reduce(F.embedding(codes + table, self.codebooks), "b k t d -> b d t", "sum"))

    def sound(self, latents: Tensor) -> Tensor:
        """The LSTM's output [B, C, T] -> audio [B, channels, T x hop]."""
        for stage in self.stages:
            latents = stage(latents)
        return self.last(F.elu(latents))


class Decoder(DecoderLayers):
    """Codes -> audio at the codec's rate."""

    def forward(self, codes: Tensor) -> Tensor:
        """codes int64 [B, K, T], T > 0 -> audio [B, channels, T x hop]."""
        x = self.vectors(codes)
        latents, _ = self.lstm(x, self.lstm.start(x))
        return self.sound(latents)


# codes [B, K, 0 or more] twice, latents [B, C, 0 or more] twice, the LSTM's state [layers, 2, B, C]
Past = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class StreamDecoder(DecoderLayers):
    """The next frames' codes and the state of earlier calls -> the same audio that Decoder makes of all frames at once.

    Frames 0 to 11 are past, 12 to 16 new; near 3, reach 1 and 1, as of the released codecs:

                 known   pending | new
    codes      6  7  8 | 9 10 11 |12 13 14 15 16      the first convolution sees 3 frames on both sides
    latents       7| 8 | 9 10 11  12 13|14 15 16      9 to 13 settle and the LSTM's state after them is kept; 14 to 16
             before  ^ unheard                        see an end that may not be one: their state is not
    audio            8  9 10 11  12|13 14 15 16       8 to 12 are final, the last 4 (lookahead) only at the end
    """

    def forward(self, codes: Tensor, past: Past) -> tuple[Tensor, Past]:
        """codes int64 [B, K, T], T > 0; past: at the start no codes, no latents and zeros.

        Returns audio [B, channels, n x hop], from the first frame on that was not final before, and the next past. Its
        last `lookahead` frames are as if the sound ended here: where it does not, they come again in the next call.
        """
        known, pending, before, unheard, state = past
        near, (behind, ahead) = self.config.near, self.config.reach
        codes = torch.cat([known, pending, codes], dim=-1)
        x = self.vectors(codes)[..., known.shape[-1] :]
        settled, state = self.lstm(x[..., :-near], state)
        tail, _ = self.lstm(x[..., -near:], state)
        latents = torch.cat([before, unheard, settled], dim=-1)
        audio = self.sound(torch.cat([latents, tail], dim=-1))[..., before.shape[-1] * self.config.hop :]
        known, pending = codes[..., :-near][..., -near:], codes[..., -near:]
        before, unheard = latents[..., :-ahead][..., -behind:], latents[..., -ahead:]
        return audio, (known, pending, before, unheard, state)
