"""The pages and the browser's client, from the package's own files: no build step, nothing from another host.

They are the same for everybody and hold no secret; what they then ask for is guarded like any other request. A page
may run its own scripts and talk to its own server, and nothing else.
"""

from __future__ import annotations

import hashlib
from functools import cache, partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..http import http_response
from ..protocols.errors import invalid

STATIC = Path(__file__).parent.parent / "static"

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".ts": "text/plain; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def page_routes() -> list[Route]:
    """`/`, `/dashboard`, `/client.js`, `/client.d.ts`, and the files that the pages load, under `/static/`."""
    named = {
        "/": "index.html",
        "/dashboard": "dashboard.html",
        "/client.js": "client.js",
        "/client.d.ts": "client.d.ts",
    }
    pages = [Route(path, partial(_page, name=name)) for path, name in named.items()]
    return [*pages, Route("/static/{name}", _static)]


async def _page(request: Request, name: str) -> Response:
    return _answer(request, name)


async def _static(request: Request) -> Response:
    return _answer(request, request.path_params["name"])


def _answer(request: Request, name: str) -> Response:
    found = _files().get(name)
    if found is None:
        return http_response(invalid(f"no file {name[:80]!r}", code="unknown_url", status=404))
    body, kind, etag = found
    headers = {**HEADERS, "etag": etag}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(body, headers={**headers, "content-type": kind})


@cache
def _files() -> dict[str, tuple[bytes, str, str]]:
    """Every file of the folder: its bytes, its type and its tag. Read once; nothing else can be asked for."""
    return {path.name: _read(path) for path in STATIC.iterdir() if path.suffix in KINDS}


def _read(path: Path) -> tuple[bytes, str, str]:
    body = path.read_bytes()
    return body, KINDS[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:20]}"'
