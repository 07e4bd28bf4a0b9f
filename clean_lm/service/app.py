"""The application: routes behind their guards."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from anyio import to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from clean_lm.service import api, metrics, plugin
from clean_lm.service.guards import Guards
from clean_lm.service.jobs import Service
from clean_lm.service.openapi import docs_page, document
from clean_lm.service.problems import Problem

PAGE = Path(__file__).with_name("page")


def application(service: Service, preload: list[str], ready: Callable[[], None] = lambda: None) -> ASGIApp:
    """The service over HTTP. ready: called when it takes requests."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await to_thread.run_sync(service.start)
        ready()
        if preload:
            service.load_ahead(preload)
        yield
        await to_thread.run_sync(service.close)

    routes = [
        Route("/", page),
        Route("/docs", docs),
        Route("/v1/openapi.json", openapi),
        Route("/metrics", numbers),
        *api.ROUTES,
        *plugin.ROUTES,
        Mount("/page", StaticFiles(directory=PAGE)),
    ]
    guards = Middleware(Guards, settings=service.settings, answer=answer)
    handlers = {HTTPException: unknown_route}
    app = Starlette(routes=routes, middleware=[guards], exception_handlers=handlers, lifespan=lifespan)  # pyright: ignore[reportArgumentType]
    app.state.service = service
    return app


def answer(path: str, problem: Problem) -> Response:
    """An error as the client of a path expects it."""
    if problem.status == 204:
        return Response(status_code=204, headers=problem.headers)
    if path.startswith(plugin.PREFIX):
        wrong = problem.status in (415, 422) or (problem.status == 404 and problem.detail.startswith("model"))
        return plugin.answer(Problem(400, problem.detail) if wrong else problem)
    return problem.response()


async def unknown_route(request: Request, error: HTTPException) -> Response:
    path, method = request.url.path, request.method
    words = {
        404: f"{path}: no such path; /docs lists them",
        405: f"{path}: takes no {method}; /docs says what it takes",
    }
    headers = dict(error.headers or {})
    return answer(path, Problem(error.status_code, words.get(error.status_code, error.detail), headers))


async def page(request: Request) -> Response:
    return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})


async def docs(request: Request) -> Response:
    return HTMLResponse(docs_page())


async def openapi(request: Request) -> Response:
    return JSONResponse(document())


async def numbers(request: Request) -> Response:
    service = api.service_of(request)
    text = metrics.text(service.counts, service.models.resident)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")
