"""The pages and the browser's client as files: all there, open without a key, with headers that keep them harmless."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from jitney.streaming.routes.pages import STATIC

NAMED = {
    "/": "text/html",
    "/dashboard": "text/html",
    "/client.js": "text/javascript",
    "/client.d.ts": "text/plain",
}


@pytest.mark.parametrize("path", NAMED)
async def test_a_page_needs_no_key_and_may_load_nothing_from_elsewhere(serving: Any, path: str) -> None:
    async with (
        serving(api_key="secret") as served,
        httpx.AsyncClient(base_url=served.url, timeout=60) as http,
    ):
        answer = await http.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(NAMED[path])
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = await http.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (await http.get("/v1/models")).status_code == 401


async def test_every_file_is_served_and_nothing_else(serving: Any) -> None:
    async with serving() as served, httpx.AsyncClient(base_url=served.url, timeout=60) as http:
        for file in STATIC.iterdir():
            answer = await http.get(f"/static/{file.name}")
            assert answer.content == file.read_bytes(), file.name
        for name in ("nothing.js", "%2e%2e/server.py", "..%2fserver.py", ""):
            assert (await http.get(f"/static/{name}")).status_code == 404


def test_pages_name_only_files_that_are_there_and_hold_no_inline_code() -> None:
    for page in STATIC.glob("*.html"):
        text = page.read_text()
        assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=", text), page.name
        for name in re.findall(r'(?:src|href)="static/([^"]+)"', text):
            assert (STATIC / name).is_file(), f"{page.name}: {name}"


def test_no_script_makes_markup_from_text_or_leaves_for_another_host() -> None:
    for script in STATIC.glob("*.js"):
        text = script.read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), (
            script.name
        )
        for name in re.findall(r'^import .* from "\./([^"]+)"', text, re.MULTILINE):
            assert (STATIC / name).is_file(), f"{script.name}: {name}"
        code = re.sub(r"^\s*(\*|//|/\*).*$", "", text, flags=re.MULTILINE)
        assert not re.search(r"""["'`]https?://""", code), script.name


def test_the_clients_types_name_what_it_exports() -> None:
    code, types = (STATIC / "client.js").read_text(), (STATIC / "client.d.ts").read_text()
    exported = set(re.findall(r"^export (?:class|function|const) (\w+)", code, re.MULTILINE))
    declared = set(re.findall(r"^export (?:class|function|const) (\w+)", types, re.MULTILINE))
    assert exported == declared and "ChatClient" in exported
