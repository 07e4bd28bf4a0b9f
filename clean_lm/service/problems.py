"""Errors as problem details (RFC 9457)."""

import errno
import sqlite3
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Problem(Exception):
    """An answer other than success: a status, and a sentence that says what was found and what to do."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None):
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers or {}

    def document(self) -> dict[str, Any]:
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.document(), self.status, self.headers, media_type="application/problem+json")


class EndedEarly(Exception):
    """An answer that is cut off on purpose: a client must not take what it has for the whole."""


def problem_of(error: Exception) -> Problem | None:
    """The answer to an error that is not the service's fault; None for any other one."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, OSError) and error.errno in FULL:
        return Problem(507, "the disk is full; free some space, or delete jobs, and try again")
    if isinstance(error, sqlite3.Error):
        if "full" in str(error):
            return Problem(507, "the disk is full; free some space, or delete jobs, and try again")
        return Problem(503, f"the list of jobs cannot be read or written: {error}", {"Retry-After": "5"})
    if isinstance(error, MemoryError):
        return Problem(503, "not enough memory; ask for fewer takes, or try again later", {"Retry-After": "30"})
    return None
