"""Which device a bundle is opened on, and with which of its variants."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from clean_lm.device import AUTO, DEVICES, TRIED, Device, DeviceError, require_available
from clean_lm.manifest import Manifest

Opened = TypeVar("Opened")


def place(manifest: Manifest, open: Callable[[Manifest], Opened]) -> Opened:
    """What `open` makes of a bundle on the device that its options name, or on the first of `auto` that starts.

    Of the variants that suit the device the first that runs is taken, unless one is asked for. Raises DeviceError where
    none does, and whatever else `open` raises.
    """
    if manifest.options.get("device") is None:
        return open(manifest)
    passed: list[str] = []
    for one in placements(manifest, passed):
        try:
            return open(replace(one, passed=tuple(passed)))
        except DeviceError as error:
            passed.append(str(error))
    raise DeviceError("; ".join(passed))


def placements(manifest: Manifest, passed: list[str]) -> Iterator[Manifest]:
    """The manifest on every device and with every variant that may be tried, the best first; what cannot be had is
    entered in `passed`."""
    asked = manifest.options.get("device") or "cpu"
    for name in (*TRIED, "cpu") if asked == AUTO else (asked,):
        device = DEVICES[name]
        try:
            require_available(device)
            variants = variants_for(manifest, device)
        except DeviceError as error:
            passed.append(str(error))
            continue
        for variant in variants:
            yield manifest.with_options(device=name, variant=variant)


def expected(manifest: Manifest) -> Manifest:
    """The manifest as `place` would try it first: for what is checked before anything is opened. Raises DeviceError."""
    if manifest.options.get("device") is None:
        return manifest
    passed: list[str] = []
    for one in placements(manifest, passed):
        return one
    raise DeviceError("; ".join(passed))


def variants_for(manifest: Manifest, device: Device) -> list[str | None]:
    """The variants to try on a device, the best first. Raises DeviceError where the bundle has none for it."""
    asked, automatic = manifest.options.get("variant"), manifest.options.get("device") == AUTO
    if device.name == "cpu" or not manifest.variants:
        return [manifest.variant]
    if asked is None:
        listed = (manifest.document.get("backends") or {}).get(device.name) or device.variants
        held = [name for name in listed if name in manifest.variants]
        if found := [name for name in held if fits(manifest, name, device) and in_place(manifest, name)]:
            return found
    chosen = asked or manifest.default_variant
    if chosen is not None and fits(manifest, chosen, device) and (in_place(manifest, chosen) or not automatic):
        return [chosen]
    held = ", ".join(f"{name} ({cache_type(manifest, name)})" for name in manifest.variants)
    raise DeviceError(
        f"device: {device.name} needs a variant whose caches are {' or '.join(device.caches)}, "
        f"{f'got {asked}' if asked else 'found none'}; this bundle has {held}: add one with export/quantize.py "
        "--variant fp16 q4f16"
    )


def fits(manifest: Manifest, name: str, device: Device) -> bool:
    """Whether a device's attention takes a variant's cache."""
    return cache_type(manifest, name) in device.caches


def in_place(manifest: Manifest, name: str) -> bool:
    """Whether a variant's cache can stay in a device's memory."""
    return manifest.variants[name].cache_update == "in_place"


def cache_type(manifest: Manifest, name: str) -> str:
    """The type of a variant's keys and values."""
    graph = manifest.variants[name].graphs.get("lm_inference")
    tensors = graph.inputs if graph else ()
    return next((tensor.dtype for tensor in tensors if tensor.name.startswith("past_key_values.")), "float32")
