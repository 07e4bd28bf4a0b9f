"""The bundles in a folder, and those that are loaded: shared by all jobs, the least recently used goes first."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from clean_lm import MusicGen
from clean_lm.device import DeviceError
from clean_lm.manifest import BundleError, Manifest
from clean_lm.memory import size
from clean_lm.placement import expected
from clean_lm.service.problems import Problem

LOOK = 0.2  # seconds between two questions whether a job that waits for room is still wanted
Key = tuple[str, str | None]  # a bundle's name, and a variant


@dataclass
class Resident:
    """A model that is loaded, or being loaded."""

    bytes: int
    manifest: Manifest  # as it was when the model was loaded
    model: MusicGen | None = None
    users: int = 0


class Models:
    """Bundles by name."""

    def __init__(
        self, folder: Path, variant: str | None, threads: int | None, resident_bytes: int, device: str | None = None
    ):
        self.folder, self.variant, self.threads, self.resident_bytes = folder, variant, threads, resident_bytes
        self.device = device
        self._changed = threading.Condition()
        self._resident: dict[Key, Resident] = {}  # the least recently used first
        self._read: dict[Path, tuple[tuple[int, int], Manifest | str]] = {}

    def bundles(self) -> dict[str, Path]:
        """The folders with a manifest.json by their names: those in `folder`, or `folder` itself."""
        if (self.folder / "manifest.json").is_file():
            return {self.folder.resolve().name: self.folder}
        with suppress(OSError):
            found = [path for path in self.folder.iterdir() if (path / "manifest.json").is_file()]
            return {path.name: path for path in sorted(found) if not path.name.startswith(".")}
        return {}

    def read(self, path: Path) -> Manifest | str:
        """The manifest of one of `bundles`, or why it cannot be used."""
        try:
            stat = (path / "manifest.json").stat()
            mark = (stat.st_mtime_ns, stat.st_size)
            if path not in self._read or self._read[path][0] != mark:
                self._read[path] = (mark, _read(path, self.variant, self.device))
        except OSError as error:
            return f"{path.name}: {error.strerror}"
        return self._read[path][1]

    def manifest(self, name: str | None, variant: str | None) -> tuple[str, Manifest]:
        """A bundle's name and its manifest, opened as `variant`; None: the only bundle, the service's variant.

        Raises Problem for names that are not in the list.
        """
        bundles = self.bundles()
        if name is None and len(bundles) == 1:
            (name,) = bundles
        held = ", ".join(bundles) or "none"
        if name is None:
            raise Problem(422, f"model: not given, expected one of {held}")
        if name not in bundles:
            raise Problem(404, f"model: got {name!r}, expected one of {held}")
        found = self.read(bundles[name])
        if isinstance(found, str):
            raise Problem(422, found)
        if variant is not None and variant not in found.variants:
            held = ", ".join(found.variants) or "none"
            raise Problem(422, f"variant: got {variant!r}, expected one of {held}")
        return name, found.with_variant(variant) if variant else found

    def loaded(self, name: str) -> str | None:
        """The variant of a bundle that is loaded ("" if it is the only one and has no name), or None."""
        with self._changed:
            return next((v or "" for (n, v), one in self._resident.items() if n == name and one.model), None)

    def resident(self) -> int:
        """Bytes of the models that are loaded."""
        with self._changed:
            return sum(one.bytes for one in self._resident.values())

    def is_loaded(self, name: str, variant: str | None) -> bool:
        with self._changed:
            return (found := self._resident.get((name, variant))) is not None and found.model is not None

    @contextmanager
    def lease(self, name: str, variant: str | None, require: Callable[[], None] = lambda: None) -> Iterator[MusicGen]:
        """A view of a model, which stays loaded until the block ends. Raises ValueError if it cannot be loaded.

        require: called while there is no room; what it raises ends the waiting.
        """
        key, one = self._claim(name, variant, require)
        try:
            yield one.model.view() if one.model else self._load(key, one).view()
        finally:
            with self._changed:
                one.users -= 1
                if one.model is None:
                    self._resident.pop(key, None)
                self._changed.notify_all()

    def _claim(self, name: str, variant: str | None, require: Callable[[], None]) -> tuple[Key, Resident]:
        """A place among the models that are loaded; waits while others fill it that are in use."""
        _, manifest = self.manifest(name, variant)
        key, need = (name, variant), manifest.used_bytes()
        if need > self.resident_bytes:
            raise ValueError(
                f"{name}: its weights have {size(need)}, --resident-memory is {size(self.resident_bytes)}: start the "
                "service with more, or take a smaller variant"
            )
        with self._changed:
            while True:
                found = self._resident.pop(key, None)
                if found is not None and found.manifest.document == manifest.document:
                    self._resident[key] = found
                    if found.model is not None:
                        found.users += 1
                        return key, found
                elif found is not None and found.users:
                    self._resident[key] = found  # until the jobs of the bundle that was replaced are done
                elif self._make_room(need):
                    self._resident[key] = Resident(need, manifest, users=1)
                    return key, self._resident[key]
                require()
                self._changed.wait(LOOK)

    def _make_room(self, need: int) -> bool:
        """Forget models that nobody uses until `need` bytes fit; whether they do."""
        free = self.resident_bytes - sum(one.bytes for one in self._resident.values())
        unused = [key for key, one in self._resident.items() if not one.users]
        while free < need and unused:
            free += self._resident.pop(unused.pop(0)).bytes
            gc.collect()  # its memory is needed now
        return free >= need

    def _load(self, key: Key, one: Resident) -> MusicGen:
        name, variant = key
        model = MusicGen.load(self.bundles()[name], variant=variant, threads=self.threads, device=self.device)
        with self._changed:
            one.model = model
            self._changed.notify_all()
        return model


def _read(path: Path, variant: str | None, device: str | None) -> Manifest | str:
    """A manifest, or why the bundle cannot be used by the service."""
    try:
        manifest = Manifest.read(path, device=device)
        if variant and variant in manifest.variants:
            manifest = manifest.with_variant(variant)
        manifest = expected(manifest)
        assert manifest.language_model
        assert manifest.codec
    except (BundleError, DeviceError, OSError) as error:
        return str(error).replace(str(path), path.name)
    return manifest
