"""`clean-lm serve`: the options, and the process."""

import argparse
import logging
import socket
import sys

import uvicorn

from clean_lm import atomic, memory
from clean_lm.console import plain
from clean_lm.device import DEVICES, require_available
from clean_lm.options import integer, number, threads
from clean_lm.service.app import application
from clean_lm.service.jobs import Service
from clean_lm.service.problems import Problem
from clean_lm.service.settings import LOOPBACK, Settings, data_folder

log = logging.getLogger("clean_lm")

GRACE = 2  # seconds that connections have when the service ends
MOST_CONNECTIONS = 256
SHARE = 0.5  # of the memory that is available, for weights


def run(args: argparse.Namespace) -> None:
    """Serve until a signal. Raises ValueError and OSError before anything is served."""
    settings = settings_of(args)
    with atomic.locked(settings.data) as ours:
        if not ours:
            raise ValueError(f"--data: {settings.data} is in use by another clean-lm serve; give each its own")
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s",
                            datefmt="%Y-%m-%dT%H:%M:%S%z")  # fmt: skip
        serve(settings, args.preload)


def serve(settings: Settings, preload: list[str]) -> None:
    """Serve until a signal. Raises OSError where the address cannot be had."""
    with listen(settings.host, settings.port) as listening:
        service = Service(settings)
        require_models(service, preload)
        address = f"[{settings.host}]" if ":" in settings.host else settings.host

        def ready() -> None:
            names = ", ".join(service.models.bundles()) or "none yet"
            log.info("models in %s: %s", plain(settings.models), plain(names))
            log.info("listening on http://%s:%d/", address, listening.getsockname()[1])

        app = application(service, preload, ready)
        config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, ws="none",
                                timeout_graceful_shutdown=GRACE, limit_concurrency=MOST_CONNECTIONS,
                                timeout_keep_alive=15)  # fmt: skip
        Server(config, service).run(sockets=[listening])


def require_models(service: Service, names: list[str]) -> None:
    """Raise ValueError for a model that is not there."""
    try:
        for name in names:
            service.models.manifest(name, None)
    except Problem as error:
        raise ValueError(f"--preload: {error.detail}") from None


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections. Raises OSError."""
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        raise OSError(
            f"--port: {host}:{port} cannot be had ({error.strerror or error}); choose another --port"
        ) from None


class Server(uvicorn.Server):
    """Tells the service that it ends before it waits for connections, which wait for the service."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame) -> None:
        self.service.stopping = True
        super().handle_exit(sig, frame)


def settings_of(args: argparse.Namespace) -> Settings:
    """The options, checked. Raises ValueError, and OSError if the folder for jobs cannot be made."""
    threads("--threads", args.threads)
    if args.device in DEVICES:
        require_available(DEVICES[args.device])
    if not args.models.is_dir():
        raise ValueError(f"--models: {args.models} is no folder; give the folder that your bundles are in")
    integer("--port", args.port, 0, 65535)
    for name, least, most in (("parallel", 1, 64), ("queue", 1, 10_000), ("max_takes", 1, 1000)):
        integer(flag(name), getattr(args, name), least, most)
    for name in ("resident_memory", "body_mb", "max_audio", "max_duration", "keep_days", "keep_gb"):
        if getattr(args, name) is not None:
            number(flag(name), getattr(args, name), "more than 0, 1e6 at most", 1e-6, 1e6)
    if args.host not in LOOPBACK and not args.token:
        raise ValueError(
            f"--host: {args.host} lets other machines in: give --token, which they must send as "
            "'Authorization: Bearer TOKEN'"
        )
    if args.token is not None and (len(args.token) < 8 or not args.token.isascii() or not args.token.isprintable()):
        raise ValueError("--token: expected 8 printable ASCII characters or more, "
                         "for example of: python -c 'import secrets; print(secrets.token_urlsafe())'")  # fmt: skip
    data = args.data or data_folder()
    data.mkdir(parents=True, exist_ok=True)
    gigabytes = args.resident_memory
    return Settings(
        models=args.models,
        data=data,
        host=args.host,
        port=args.port,
        variant=args.variant,
        threads=args.threads,
        device=args.device,
        resident_bytes=round(memory.available() * SHARE if gigabytes is None else gigabytes * 1e9),
        token=args.token,
        origins=tuple(origin.rstrip("/") for origin in args.allow_origin),
        hosts=tuple(args.allow_host),
        parallel=args.parallel,
        waiting=args.queue,
        body_bytes=round(args.body_mb * 1e6),
        audio_seconds=args.max_audio,
        duration=args.max_duration,
        takes=args.max_takes,
        keep_seconds=args.keep_days * 86400,
        keep_bytes=round(args.keep_gb * 1e9),
        plugin_join="append" if args.plugin_append else "splice",
    )


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
