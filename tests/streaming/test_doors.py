"""Who may come in: every route, by key, Origin and Host, against a written table. A route without a row fails here."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
from asgi_doors import status_of
from starlette.routing import Mount, Route, WebSocketRoute

from jitney.runtime import DynamicEngine
from jitney.runtime.testing import ScriptedBackend
from jitney.streaming import create_app
from jitney.streaming.access.keys import digest_of

HEALTH, PAGE, METRICS, KEYED = "health", "page", "metrics", "keyed"
TABLE = {
    ("http", "GET", "/live"): HEALTH,
    ("http", "GET", "/ready"): HEALTH,
    ("http", "GET", "/health"): HEALTH,
    ("http", "GET", "/"): PAGE,
    ("http", "GET", "/dashboard"): PAGE,
    ("http", "GET", "/client.js"): PAGE,
    ("http", "GET", "/client.d.ts"): PAGE,
    ("http", "GET", "/static/{name}"): PAGE,
    ("http", "GET", "/metrics"): METRICS,
    ("http", "PUT", "/api"): KEYED,
    ("http", "POST", "/completions"): KEYED,
    ("http", "POST", "/v1/chat/completions"): KEYED,
    ("http", "POST", "/v1/completions"): KEYED,
    ("http", "POST", "/v1/responses"): KEYED,
    ("http", "GET", "/v1/responses"): KEYED,
    ("http", "GET", "/v1/chat/ws"): KEYED,
    ("http", "GET", "/v1/responses/{response_id}"): KEYED,
    ("http", "DELETE", "/v1/responses/{response_id}"): KEYED,
    ("http", "POST", "/v1/responses/{response_id}/cancel"): KEYED,
    ("http", "GET", "/v1/models"): KEYED,
    ("http", "GET", "/v1/models/{model}"): KEYED,
    ("http", "POST", "/v1/tokenize"): KEYED,
    ("http", "POST", "/v1/detokenize"): KEYED,
    ("http", "POST", "/v1/ws-tickets"): KEYED,
    ("http", "GET", "/v1/dashboard"): KEYED,
    ("websocket", "GET", "/v1/responses"): KEYED,
    ("websocket", "GET", "/v1/chat/ws"): KEYED,
    ("websocket", "GET", "/{path}"): KEYED,
}
"""Of each route: whether it is open to everybody, needs no key, needs its own key, or needs a key."""

OPEN_HOSTS = {"127.0.0.1:8000": True, "localhost": True, "LOCALHOST:1": True, "[::1]:80": True}
FOREIGN_HOSTS = {
    "evil.example": False,
    "localhost.evil.example": False,
    "127.0.0.1.evil.example": False,
    "localhost.": False,
    "localhost@evil.example": False,
    "": False,
}
HOSTS = {**OPEN_HOSTS, **FOREIGN_HOSTS, "proxy.example": True, "Proxy.Example": True}
ORIGINS = {
    None: True,
    "https://app.example": True,
    "https://app.example.": False,
    "https://app.example:8443": False,
    "http://app.example": False,
    "https://APP.example": False,
    "https://app.example.evil.example": False,
    "https://xapp.example": False,
    "https://evil.example#https://app.example": False,
    "https://evil.example/https://app.example": False,
    "null": False,
    "": False,
    "file://": False,
    "http://[bad": False,
    "http://localhost:3000": True,
    "http://127.0.0.1": True,
    "http://localhost.evil.example": False,
    "http://localhost@evil.example": False,
    "chrome-extension://localhost": False,
}
RIGHT, WRONG = "right-secret", "wrong-secret"


def rows(app: Any) -> set[tuple[str, str, str]]:
    """Every route of the app as the table spells it."""
    found = set()
    for route in app.routes:
        if isinstance(route, Mount):
            found.add(("http", "GET", f"{route.path}/{{name}}"))
        elif isinstance(route, WebSocketRoute):
            found.add(("websocket", "GET", plain(route.path)))
        else:
            assert isinstance(route, Route)
            methods = (route.methods or set()) - {"HEAD"}
            found |= {("http", method, plain(route.path)) for method in methods}
    return found


def plain(path: str) -> str:
    return path.replace(":path}", "}").replace("{file}", "{name}")


def keys_file(folder: Path, *names: str) -> Path:
    path = folder / "keys.toml"
    path.write_text(
        "".join(f'[[key]]\nname = "{name}"\nsha256 = "{digest_of(name + "-secret")}"\n' for name in names)
    )
    return path


def test_every_route_has_a_row() -> None:
    app = create_app(DynamicEngine(ScriptedBackend()))
    assert rows(app) == set(TABLE)


def expected(kind: str, *, keyed: bool, key: str | None, host: bool, origin: bool) -> set[int] | None:
    """The statuses of a refusal; None: it comes in."""
    if kind == HEALTH:
        return None
    if (not keyed and not host) or not origin:
        return {403}
    if kind == PAGE or not keyed:
        return None
    if kind == METRICS:
        return None if key == "metrics" else {401}
    return None if key == RIGHT else {401}


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("row", sorted(TABLE), ids="".join)
async def test_the_table(row: tuple[str, str, str], keyed: bool, tmp_path: Path) -> None:
    kind, method, path = row
    options: dict[str, Any] = (
        {"keys_file": keys_file(tmp_path, "right", "other"), "metrics_key": "metrics"} if keyed else {}
    )
    app = create_app(
        DynamicEngine(ScriptedBackend()),
        allow_origins=["https://app.example"],
        allow_hosts=["proxy.example"],
        **options,
    )
    url = path.replace("{name}", "x").replace("{model}", "m").replace("{response_id}", "resp_1")
    for (host, host_ok), (origin, origin_ok), key in itertools.product(
        HOSTS.items(), ORIGINS.items(), (None, WRONG, RIGHT, "metrics")
    ):
        headers = {"host": host}
        headers |= {"origin": origin} if origin is not None else {}
        headers |= {"authorization": f"Bearer {key}"} if key is not None else {}
        status, _ = await status_of(app, kind, method, url, headers)
        origin_ok = origin_ok or ("@" not in host and origin == f"http://{host.lower()}")
        refused = expected(TABLE[row], keyed=keyed, key=key, host=host_ok, origin=origin_ok)
        assert (status in refused) if refused else (status not in (401, 403)), (headers, status)


@pytest.fixture
def app(tmp_path: Path) -> Any:
    return create_app(
        DynamicEngine(ScriptedBackend()),
        keys_file=keys_file(tmp_path, "right", "other"),
        allow_origins=["https://app.example"],
    )


SOCKET = "/v1/responses"
HOST = {"host": "server.example"}


async def handshake(app: Any, query: str = "", **headers: str) -> tuple[int, str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    status, answer = await status_of(app, "websocket", "GET", SOCKET, {**HOST, **named}, query=query)
    return status, answer.get("subprotocol", "")


async def test_a_key_may_come_as_a_subprotocol_that_is_not_echoed(app: Any) -> None:
    offers = {
        "jitney.v1, jitney.bearer.right-secret": (503, ""),
        "jitney.bearer.right-secret, jitney.v1": (503, ""),
        "realtime, openai-insecure-api-key.right-secret": (503, ""),
        "jitney.v1, jitney.bearer.wrong-secret": (401, ""),
        "jitney.v1": (401, ""),
        "right-secret": (401, ""),
    }
    for offer, answer in offers.items():
        assert await handshake(app, sec_websocket_protocol=offer) == answer, offer


async def test_the_first_subprotocol_is_echoed(tmp_path: Path) -> None:
    async with DynamicEngine(ScriptedBackend()) as engine:
        app = create_app(engine, api_key=RIGHT)
        for name, bearer in (("jitney.v1", "jitney.bearer."), ("realtime", "openai-insecure-api-key.")):
            offer = f"{name}, {bearer}{RIGHT}"
            assert await handshake(app, sec_websocket_protocol=offer) == (101, name)
        assert await handshake(app, authorization=f"Bearer {RIGHT}") == (101, "")


async def test_a_socket_that_is_not_served_is_not_found() -> None:
    app = create_app(DynamicEngine(ScriptedBackend()))
    for path in ("/v1/realtime", "/"):
        status, _ = await status_of(app, "websocket", "GET", path, {"host": "localhost"})
        assert status == 404


async def test_a_query_is_no_place_for_a_key(app: Any) -> None:
    for query in ("ticket=right-secret", "api_key=right-secret", "token=right-secret"):
        status, _ = await handshake(app, query)
        assert status == 401


async def test_a_preflight_is_answered_for_allowed_pages_alone(app: Any) -> None:
    asked = {
        **HOST,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, x-stainless-lang",
    }
    for origin, status in (("https://app.example", 204), ("https://evil.example", 403)):
        got, answer = await status_of(
            app, "http", "OPTIONS", "/v1/chat/completions", {**asked, "origin": origin}
        )
        assert got == status
        assert answer.get("access-control-allow-origin") == (origin if status == 204 else None)
        assert "access-control-allow-credentials" not in answer
        methods = "GET, POST, PUT, DELETE" if status == 204 else None
        assert answer.get("access-control-allow-methods") == methods
    assert answer.get("access-control-allow-headers") is None


async def test_answers_to_allowed_pages_say_so(app: Any) -> None:
    headers = {**HOST, "authorization": "Bearer right-secret", "origin": "https://app.example"}
    status, answer = await status_of(app, "http", "GET", "/v1/models", headers)
    assert status == 503 and answer["access-control-allow-origin"] == "https://app.example"
    assert answer["vary"] == "origin" and answer["x-request-id"].startswith("req_")


async def test_an_allowed_page_may_read_why_it_was_refused(app: Any) -> None:
    for origin, status, readable in (
        ("https://app.example", 401, "https://app.example"),
        ("https://evil.example", 403, None),
    ):
        got, answer = await status_of(app, "http", "GET", "/v1/models", {**HOST, "origin": origin})
        assert (got, answer.get("access-control-allow-origin")) == (status, readable)


async def test_what_is_refused_is_logged_once_with_the_flag_that_lets_it_in(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        await handshake(app, origin="https://page.example")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "--allow-origin 'https://page.example'" in lines[0]


async def test_only_trusted_keys_name_users(tmp_path: Path) -> None:
    path = keys_file(tmp_path, "right", "trusted")
    path.write_text(path.read_text() + "trusted = true\n")
    app = create_app(DynamicEngine(ScriptedBackend()), keys_file=path)
    for name, user, status in (
        ("right", "ann", 403),
        ("trusted", "ann", 503),
        ("trusted", "a" * 129, 400),
        ("right", None, 503),
    ):
        headers = {**HOST, "authorization": f"Bearer {name}-secret"}
        headers |= {} if user is None else {"jitney-user": user}
        assert (await status_of(app, "http", "GET", "/v1/models", headers))[0] == status


async def test_metrics_need_a_key_of_their_own_where_keys_are_asked_for(app: Any) -> None:
    headers = {**HOST, "authorization": "Bearer right-secret"}
    assert (await status_of(app, "http", "GET", "/metrics", headers))[0] == 403
