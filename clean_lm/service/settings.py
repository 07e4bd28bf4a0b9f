"""What the service is started with."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """The options of `clean-lm serve`, checked."""

    models: Path
    data: Path
    host: str = "127.0.0.1"
    port: int = 8000
    variant: str | None = None  # None: each bundle's default
    threads: int | None = None
    device: str | None = None  # None: the CPU
    resident_bytes: int = 4 * 10**9  # of weights that stay loaded
    token: str | None = None
    origins: tuple[str, ...] = ()  # of other web pages that may use the service
    hosts: tuple[str, ...] = ()  # names beside localhost that the service is reached by
    parallel: int = 1  # generations at the same time
    waiting: int = 32  # jobs in the queue
    body_bytes: int = 100 * 10**6
    audio_seconds: float = 900.0  # of a file that is sent
    duration: float = 300.0  # seconds of one generation
    takes: int = 8
    keep_seconds: float = 7 * 86400.0  # that a finished job is kept
    keep_bytes: int = 5 * 10**9  # of all finished jobs
    plugin_join: str = "splice"  # how the plugin's continuations are joined to their track


def data_folder() -> Path:
    """Where jobs are kept if nothing else is said. Raises RuntimeError if there is no home folder."""
    if os.name == "nt" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "clean_lm" / "service"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "clean_lm" / "service"
    chosen = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (chosen if chosen.is_absolute() else Path.home() / ".local" / "share") / "clean_lm" / "service"
