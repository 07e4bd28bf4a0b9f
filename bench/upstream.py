"""audiocraft's own language model, if it is installed: the checkpoint's sizes, random weights, always two rows."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.workload import CFG_COEF, TEXT_TOKENS, TOP_K, Coder, Mode, Step, Workload
from clean_lm.models.config import LMConfig
from weights.lm import load


def installed() -> bool:
    return importlib.util.find_spec("audiocraft") is not None


class Audiocraft:
    """Its LMModel in streaming mode, one column a step; its own weights, the bundle's codec."""

    name = "audiocraft"

    def __init__(self, checkpoint: Path, coder: Coder):
        self.config = load(checkpoint).config
        self.coder: Coder = coder
        self.lm = build(self.config)
        self.lm._set_streaming(True)
        self.states: dict[tuple[str, int], dict[str, Any]] = {}

    def rows(self, mode: Mode) -> int:
        return 2 * mode.takes

    def prefill(self, mode: Mode, columns: int) -> Step:
        self.lm.set_streaming_state({})
        return self._go_on(mode, columns)

    def seek(self, mode: Mode, at: int) -> Step:
        """The layout of its cache depends on its version: a prefill fills one of each length, for all samples."""
        if (mode.name, at) not in self.states:
            self.prefill(mode, at)
            self.states[mode.name, at] = self.lm.get_streaming_state()
        self.lm.set_streaming_state(self.states[mode.name, at])
        return self._go_on(mode, 1)

    def step_bytes(self, mode: Mode, at: int) -> int:
        c = self.config
        weights = sum(p.nbytes for name, p in self.lm.named_parameters() if not name.startswith("emb."))
        return weights + at * self.rows(mode) * c.layers * 2 * c.dim * 4

    def continue_audio(self, mode: Mode, audio: np.ndarray, workload: Workload) -> np.ndarray:
        codes = self.coder.encode(audio)
        frames = codes.shape[2] * int(workload.duration / workload.prompt)
        step = self.prefill(mode, codes.shape[2] + 1)
        for _ in range(codes.shape[2] + 1, frames + max(self.config.delays)):
            step()
        return self.coder.decode(np.resize(codes, (*codes.shape[:2], frames)))

    def _go_on(self, mode: Mode, columns: int) -> Step:
        c = self.config
        text = torch.zeros(self.rows(mode), TEXT_TOKENS if mode.text else 1, c.dim)
        text[: mode.takes] = torch.randn(text.shape[1:]) if mode.text else 0
        conditions = {"description": (text, torch.ones(text.shape[:2]))}

        @torch.inference_mode()
        def read(codes: Tensor) -> Tensor:
            how = {"use_sampling": True, "top_k": TOP_K, "cfg_coef": CFG_COEF}
            return self.lm._sample_next_token(codes, conditions, {}, **how)

        codes = read(torch.randint(0, c.card, (mode.takes, c.codebooks, columns)))

        def step() -> None:
            nonlocal codes
            codes = read(codes)

        return step


def build(c: LMConfig) -> Any:
    """An LMModel like the released ones, without the text encoder that get_lm_model would download."""
    from audiocraft.models.lm import LMModel  # pyright: ignore[reportMissingImports]
    from audiocraft.modules.codebooks_patterns import DelayedPatternProvider  # pyright: ignore[reportMissingImports]
    from audiocraft.modules.conditioners import (  # pyright: ignore[reportMissingImports]
        ConditionFuser,
        ConditioningProvider,
    )

    lm = LMModel(
        DelayedPatternProvider(c.codebooks, list(c.delays)),
        ConditioningProvider({}),
        ConditionFuser({"cross": ["description"], "prepend": [], "sum": [], "input_interpolate": []}),
        n_q=c.codebooks, card=c.card, dim=c.dim, num_heads=c.heads, hidden_scale=c.hidden_scale, num_layers=c.layers,
        norm_first=True, causal=True, cross_attention=True, activation="gelu", bias_ff=False, bias_attn=False,
        bias_proj=False, custom=True, memory_efficient=importlib.util.find_spec("xformers") is not None,
    )  # fmt: skip
    return lm.eval()
