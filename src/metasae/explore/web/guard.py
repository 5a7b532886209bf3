"""What every request passes and every answer carries: for this machine only, and no page of another site gets in.

A page on another site must not read or change anything here. So the Host header has to name this machine (a foreign
name that is pointed at 127.0.0.1 does not), a POST has to be JSON from a page of ours, and the content-security-policy
lets a page run and load nothing that this server did not send: no inline scripts, no other hosts.
"""

import ipaddress
import socket
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.datastructures import URL, Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from metasae.errors import UserError
from metasae.explore.web.page_files import STATIC, plotly_script

# What default-src does not cover is named. Styles come from files too: plotly's own are in static/plotly.css.
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def guarded(routes: Sequence[BaseRoute], host: str, html: bool = False) -> Starlette:
    """An application of routes and the files of the pages.

    html: index.html too, at /. host: the address it is served on.
    """
    files = [Route("/plotly.min.js", _plotly), Mount("/", StaticFiles(directory=STATIC, html=html))]
    middleware = [Middleware(Guard), Middleware(TrustedHost, host=host)]
    return Starlette(routes=[*routes, *files], exception_handlers=ERRORS, middleware=middleware)


class TrustedHost(TrustedHostMiddleware):
    """Answers to localhost and this machine's loopback addresses.

    A server that the user opens to a network also answers to that host, to the machine's name, and to any address in
    digits: such an address cannot be pointed elsewhere, as a name can.
    """

    def __init__(self, app, host: str):
        self._open = host not in LOOPBACK
        names = [host, socket.gethostname()] if self._open else []
        super().__init__(app, ["localhost", *names], www_redirect=False)

    async def __call__(self, scope, receive, send) -> None:
        try:
            address = ipaddress.ip_address(URL(f"http://{Headers(scope=scope).get('host', '')}").hostname)
            trusted = self._open or address.is_loopback
        except ValueError:
            trusted = False
        return await (self.app if trusted else super().__call__)(scope, receive, send)


class Guard:
    """Refuses POSTs from other origins and POSTs of anything but JSON; puts HEADERS on every answer."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def with_headers(message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = None if scope["method"] in ("GET", "HEAD") else _refusal(Headers(scope=scope))
        return await (refusal or self.app)(scope, receive, with_headers)


def _refusal(headers: Headers) -> Response | None:
    # a browser always sends the origin with a POST; what sends none is no page
    own = (None, f"http://{headers.get('host', '')}")
    if headers.get("origin") not in own or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return error_answer(403, "refused: the request comes from another site")
    if headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return error_answer(415, "send application/json")
    return None


def error_answer(status: int, line: str) -> Response:
    return JSONResponse({"error": " ".join(line.split())}, status)


# an application's own answer to what a question raises: 404 for what is not there, 400 for wrong parameters
ERRORS = {
    HTTPException: lambda request, error: error_answer(error.status_code, error.detail),
    KeyError: lambda request, error: error_answer(404, str(error.args[0])),
    ValueError: lambda request, error: error_answer(400, str(error)),
    UserError: lambda request, error: error_answer(400, str(error)),
    Exception: lambda request, error: error_answer(500, f"{type(error).__name__}: {error}"),
}


def fresh(answer: dict) -> Response:
    """An answer that the browser asks for anew each time."""
    return JSONResponse(answer, headers={"cache-control": "no-store"})


def _plotly(request: Request) -> Response:
    return FileResponse(plotly_script(), media_type="text/javascript", headers={"cache-control": "max-age=3600"})
