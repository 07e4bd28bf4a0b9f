"""The README.md of a bundle on the Hugging Face hub: what its manifest says, for people."""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from clean_lm.manifest import Manifest
from clean_lm.manifest_fields import VariantInfo

META_LICENSE = "cc-by-nc-4.0"  # of the weights of MusicGen and AudioGen, and so of what is made from them
META_MODELS = re.compile(r"facebook/(musicgen|audiogen)-.+")
TAGS = ["onnx", "onnxruntime", "musicgen", "music-generation", "audio-continuation"]

BODY = """\
# {title}
{kind} as ONNX files for clean_lm, which continues and generates audio in plain ONNX Runtime.{origin}

| | |
|---|---|
| sample rate | {sample_rate} Hz, {channels} |
| trained on | windows of {window:g} s; longer audio is generated in windows |
| takes | {takes} |

## Variants
{variants}

{measured}

## Python
```python
from clean_lm import MusicGen

model = MusicGen.get_pretrained("{repository}")
model.set_generation_params(duration=30)
audio = model.generate_continuation(prompt, sample_rate, {descriptions})  # float32 [B, channels, samples]
```

## JavaScript
```js
import * as ort from 'onnxruntime-node' // or onnxruntime-web
import {{ MusicGen }} from 'clean-lm'

const model = await MusicGen.load('hf:{repository}', {{ ort }})
const {{ audio }} = await model.generateContinuation(samples, sampleRate, {{ duration: 30 }})
```

## Licence
{licence}
"""

MEASURED = """\
`kl`: mean Kullback-Leibler divergence of the codes' distributions from fp32's, in nats. `top 1`: how often the most
probable code is fp32's. `perplexity`: of the codes that it was measured on, with fp32's in brackets."""


@dataclass(frozen=True)
class Source:
    """Where the weights come from; None for what is not known."""

    base_model: str | None = None
    license: str | None = None  # an identifier of the hub, such as cc-by-nc-4.0

    @classmethod
    def of(cls, manifest: Manifest, base_model: str | None = None, license: str | None = None) -> "Source":
        """What is given, else what the bundle's manifest says of its source, else what is known of Meta's models."""
        known = manifest.document.get("source", {})
        base = base_model or known.get("repository")
        theirs = known.get("license") if base == known.get("repository") else None
        return cls(base, license or theirs or (META_LICENSE if base and META_MODELS.fullmatch(base) else None))


def model_card(manifest: Manifest, repository: str, source: Source) -> str:
    """The whole README.md: YAML front matter and text."""
    front = {
        "license": source.license,
        **({"base_model": source.base_model} if source.base_model else {}),
        "library_name": "clean_lm",
        "pipeline_tag": "text-to-audio",
        "tags": TAGS,
    }
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n{_body(manifest, repository, source)}"


def front_matter(text: str) -> dict[str, Any]:
    """The YAML at the beginning of a model card; {} where there is none."""
    found = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        front = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return front if isinstance(front, dict) else {}


def _body(manifest: Manifest, repository: str, source: Source) -> str:
    model = manifest.language_model
    text = "text_encoder" in manifest.graphs
    qualities = [variant.quality for variant in manifest.variants.values() if variant.quality]
    takes = ["audio to continue", "a description"] if text else ["audio to continue"]
    takes += {"melody": ["a melody"], "style": ["audio whose style it follows"]}.get(model.self_wav or "", [])
    return BODY.format(
        title=repository.split("/")[-1],
        kind="A MusicGen model" if model.self_wav is None else f"A MusicGen {model.self_wav} model",
        origin=f" Its weights come from [{source.base_model}](https://huggingface.co/{source.base_model})."
        if source.base_model
        else "",
        sample_rate=model.sample_rate,
        channels="stereo" if model.channels == 2 else "mono",
        window=model.max_duration,
        takes=", ".join(takes),
        variants="\n".join(_table(manifest)),
        measured=MEASURED if qualities else "Other variants than fp32 are measured beside it when they are made.",
        repository=repository,
        descriptions='["warm pads"]' if text else "[None]",
        licence=f"`{source.license}`, as the weights that it was made from.",
    )


def _table(manifest: Manifest) -> list[str]:
    """The variants, the default one first, with what was measured of each."""
    names = sorted(manifest.variants, key=lambda name: name != manifest.default_variant)
    rows = [_row(name, manifest.variants[name], name == manifest.default_variant) for name in names]
    return ["| variant | MB | KV cache | kl | top 1 | perplexity (fp32's) |", "|---|---:|---|---:|---:|---:|", *rows]


def _row(name: str, variant: VariantInfo, default: bool) -> str:
    cost = variant.quality
    cells = [f"**{name}** (default)" if default else name, f"{variant.bytes / 1e6:.1f}", variant.cache]
    if cost:
        cells += [f"{cost.kl:.4f}", f"{cost.top1:.1%}", f"{cost.perplexity:.2f} ({cost.perplexity_fp32:.2f})"]
    else:
        cells += [""] * 3
    return f"| {' | '.join(cells)} |"
