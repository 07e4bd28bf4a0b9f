"""Trains a module: AdamW on a cosine schedule, resumable."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

SAVE = 200  # steps between saves


@dataclass(frozen=True)
class Settings:
    """How one module is trained."""

    steps: int
    batch: int
    rate: float  # the highest learning rate
    warmup: int  # steps to it
    betas: tuple[float, float]
    decay: float  # of weights
    seed: int = 0


def train(
    module: nn.Module, loss: Callable[[int], tuple[Tensor, str]], path: Path, settings: Settings, every: int = 50
) -> None:
    """Minimise loss(step), which also returns a line to print. Continues from `path` where it exists."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1.0, settings.betas, weight_decay=settings.decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, settings))
    parts = {"module": module, "optimizer": optimizer, "schedule": schedule}
    if path.exists():
        saved = torch.load(path, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    start = time.perf_counter()
    for step in (bar := tqdm(range(schedule.last_epoch, settings.steps), path.stem, disable=None)):
        value, line = loss(step)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % every == 0 or step == settings.steps - 1:
            bar.write(f"{path.stem} step {step}, {time.perf_counter() - start:.0f} s: loss {value:.4f}, {line}")
        if (step + 1) % SAVE == 0 or step == settings.steps - 1:
            partial = path.with_suffix(".partial")
            torch.save({name: part.state_dict() for name, part in parts.items()}, partial)
            partial.replace(path)


def rate(step: int, settings: Settings) -> float:
    """The learning rate: it rises linearly, then falls along a cosine."""
    if step < settings.warmup:
        return settings.rate * (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.rate * (0.02 + 0.98 * (1 + math.cos(math.pi * share)) / 2)


def initialise(module: nn.Module) -> None:
    """Give a module without storage weights: uniform, so large that a layer's output is as large as its input."""
    module.to_empty(device="cpu")
    for name, p in module.named_parameters():
        p.requires_grad_(True)
        if "lstm" in name:  # as PyTorch has it: [1, 4C, C], biases [1, 8C]
            bound = (p.shape[-1] if p.dim() == 3 else p.shape[-1] // 8) ** -0.5
        else:  # convolutions [out, in, kernel], maps [in, out]; biases begin at 0
            bound = (3 / math.prod(p.shape[1:] if p.dim() == 3 else p.shape[:1])) ** 0.5 if p.dim() > 1 else 0.0
        nn.init.uniform_(p, -bound, bound)
        if "norm" in name and name.endswith("weight"):
            nn.init.ones_(p)
