"""What runs of the float32 model say of how to store the matrices and caches of variants."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from clean_lm.manifest import BundleError, Manifest
from export import sensitivity
from export.commands import progress
from export.layerwise import Sequences, hessians
from export.quality import KL_BOUND, SAMPLER, Exact, Reference, clip_samples, drawn_codes, measured_codes, own_samples
from export.rewrite import Calibrated
from export.rounding import Blocks, Storage, gptq
from export.sensitivity import most_sensitive
from export.variants import Variant

# What rounding the matrices that are not sensitive may cost on what the model draws: half of the bound, so that a whole
# interval is below it. There, the perplexity's bound is a divergence of log(1.03) = 0.0296: the cross-entropy of what
# float32 draws is its entropy and the divergence.
COST_BOUND = KL_BOUND / 2


class Calibration:
    """The calibration of a bundle's variants: what they share is computed once."""

    def __init__(self, manifest: Manifest, clips: Sequence[Path], source: str, scratch: Path):
        """source: "own" or "clips", what matrices are rounded on. scratch: a folder for what is not kept. Raises
        FileNotFoundError, BundleError, ExportError, AudioError."""
        self.manifest, self.source, self.scratch = manifest, source, scratch
        self.clips = clips = list({clip.resolve(): clip for clip in clips}.values())  # twice the same is no more to say
        self.exact = Exact.of(manifest)
        self.clip_samples = clip_samples(manifest, clips) if source == "clips" else []
        drawn = drawn_codes(self.exact.sampler(scratch), manifest, clips)
        self.reference = Reference(self.exact, measured_codes(drawn, manifest, clips), drawn if clips else ())
        self.files: dict[Storage, dict[str, Path]] = {}

    def of(self, variant: Variant) -> Calibrated:
        """How to store the matrices and caches of a variant."""
        rounded = self.rounded(variant.storage) if variant.calibrated else {}
        others = {}
        if variant.sensitive:
            costs = sensitivity.costs(self.sequences[-1:], self.read_back(rounded))
            sizes = {name: matrix.numel() for name, matrix in self.exact.module.named_parameters()}
            others = dict.fromkeys(most_sensitive(costs, sizes, COST_BOUND), variant.sensitive)
        stored = self.exact.sampler_file(self.scratch) if replace(variant, cache=SAMPLER.cache) == SAMPLER else None
        return Calibrated(rounded, others, self.reference.scales if variant.cache == "int8" else None, stored)

    @cached_property
    def sequences(self) -> list[Sequences]:
        """The codes that matrices are rounded on, and last those for what rounding them costs."""
        if self.source == "own":
            progress("rounding on the model's own samples")
            samples = own_samples(self.exact.sampler(self.scratch), self.manifest)
        else:
            progress("rounding on clips")
            samples = self.clip_samples
        return [self.exact.sequences(codes) for codes in samples]

    def rounded(self, storage: Storage) -> dict[str, Path]:
        """Files of all matrices rounded by GPTQ, once for all variants that store them alike."""
        if storage not in self.files:
            folder = self.scratch / f"{len(self.files)}"
            folder.mkdir()
            files = self.files[storage] = {}
            for name, matrix, hessian in hessians(self.exact.module, self.sequences[:-1] or self.sequences):
                if not hessian.isfinite().all():
                    where = self.manifest.folder
                    raise BundleError(f"{where}: what {name} reads is not finite: fp32 is damaged; export it again")
                files[name] = folder / name
                gptq(matrix, hessian, storage.fit(len(matrix))).save(files[name])
        return self.files[storage]

    def read_back(self, rounded: Mapping[str, Path]) -> Callable[[str], torch.Tensor]:
        """Rounded matrices [K, N] by their names."""
        matrices = dict(self.exact.module.named_parameters())
        return lambda name: Blocks.load(rounded[name]).weight(len(matrices[name]))
