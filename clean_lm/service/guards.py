"""What stands before every route: which hosts, origins and tokens, and errors in the form that a client expects."""

import hmac
import ipaddress
import logging
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clean_lm.options import shown
from clean_lm.service import metrics
from clean_lm.service.problems import EndedEarly, Problem, problem_of
from clean_lm.service.settings import LOOPBACK, Settings

log = logging.getLogger("clean_lm")

OPEN = ("/", "/docs", "/health", "/page/")  # need no token: they hold nothing of anybody
POLICY = ("default-src 'self'; media-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
          "frame-ancestors 'none'")  # fmt: skip
SAFE = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
CORS = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Expose-Headers": "Location, Retry-After",
    "Access-Control-Max-Age": "600",
}


class Guards:
    """Wraps the application."""

    def __init__(self, app: ASGIApp, settings: Settings, answer: Callable[[str, Problem], ASGIApp]):
        """answer: an error as the client of a path expects it."""
        self.app, self.settings, self.answer = app, settings, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, begun = Headers(scope=scope), False
        origin = headers.get("origin")

        async def guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                metrics.ANSWERS.labels(str(message["status"])).inc()
                found = MutableHeaders(scope=message)
                found.update(SAFE)
                if origin in self.settings.origins:
                    found.update({"Access-Control-Allow-Origin": str(origin), "Vary": "Origin"})
            await send(message)

        try:
            self._check(scope, headers, origin)
            if scope["method"] == "OPTIONS" and origin in self.settings.origins:
                raise Problem(204, "", CORS)
            await self.app(scope, receive, guarded)
        except EndedEarly:
            return None  # without the end of the body, so that the server closes the connection
        except Exception as error:
            if begun:
                raise
            await self.answer(scope["path"], self._problem(error))(scope, receive, guarded)

    def _problem(self, error: Exception) -> Problem:
        if (known := problem_of(error)) is not None:
            return known
        if isinstance(error, (ValueError, FileNotFoundError)):
            return Problem(422, " ".join(str(error).split()))
        log.exception("an error of the service")
        return Problem(500, "an error of the service; its log has more")

    def _check(self, scope: Scope, headers: Headers, origin: str | None) -> None:
        """Raise Problem for a request that does not come from where it may."""
        settings = self.settings
        if not is_known_host(headers.get("host", ""), settings):
            found = shown(headers.get("host", ""))
            raise Problem(421, f"Host: got {found}, expected localhost, an address, or a name given by --allow-host")
        same = {f"{scheme}://{headers.get('host')}" for scheme in ("http", "https")}
        if origin is not None and origin not in same and origin not in settings.origins:
            raise Problem(403, f"Origin: {shown(origin)} may not use this service; start it with --allow-origin")
        if settings.token is not None and not is_open(scope["path"]) and scope["method"] != "OPTIONS":
            require_token(scope, headers, settings.token)


def is_known_host(host: str, settings: Settings) -> bool:
    """Whether a Host header is an address or a name of ours. A page that has its own name point here (DNS rebinding)
    sends that name."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in (*LOOPBACK, settings.host, *settings.hosts):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_open(path: str) -> bool:
    return any(path == known or (len(known) > 1 and known.endswith("/") and path.startswith(known)) for known in OPEN)


def require_token(scope: Scope, headers: Headers, token: str) -> None:
    """Raise Problem unless the request has the token: as a header, or where a browser cannot set one, in the query."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    query = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])
    found = given.strip() if scheme.lower() == "bearer" else query[0]
    if not hmac.compare_digest(found.encode(), token.encode()):
        raise Problem(401, "this service needs its token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
