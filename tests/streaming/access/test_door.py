"""The door takes anything that a handshake may hold: it lets in or refuses, and raises nothing else."""

from __future__ import annotations

import random
from typing import Any

from jitney.streaming.access.door import Door
from jitney.streaming.protocols.errors import Refused

PIECES = [
    b"",
    b"\x00",
    b"\xff\xfe",
    b"null",
    b"http://",
    b"https://a.example",
    b"localhost",
    b"127.0.0.1:80",
    b"[::1]",
    b"[",
    b"]:99999999999",
    b"Bearer ",
    b"bearer",
    b"Basic eDp5",
    b"secret",
    b"ticket_",
    b"jitney.v1",
    b"jitney.bearer.",
    b"openai-insecure-api-key.",
    b",",
    b" ",
    b"%",
    b"%zz",
    b"&ticket=",
    b"ticket=ticket_x",
    b"x" * 5000,
    "é😀".encode(),
    b"jitney-user",
]
NAMES = [b"host", b"origin", b"authorization", b"jitney-user", b"access-control-request-method"]
PATHS = ["/", "/live", "/metrics", "/v1/responses", "", "//", "/live/", "/static/../v1", "\x00", "/é"]


def piled(rng: random.Random) -> bytes:
    return b"".join(rng.choices(PIECES, k=rng.randrange(4)))


def test_twenty_thousand_piles_of_pieces() -> None:
    rng = random.Random(8)
    doors = [
        Door(),
        Door(api_key="secret", allow_origins=["https://a.example"], metrics_key="m"),
        Door(allow_hosts=["a.example"]),
    ]
    admitted = 0
    for _ in range(20_000):
        kind = rng.choice(["http", "websocket"])
        scope: dict[str, Any] = {
            "type": kind,
            "method": rng.choice(["GET", "OPTIONS", "BREW"]),
            "path": rng.choice(PATHS),
            "query_string": piled(rng),
            "server": rng.choice([None, ("127.0.0.1", 80), ("::1", 80), ("10.0.0.1", 80), ("", None)]),
            "headers": [(rng.choice(NAMES), piled(rng)) for _ in range(rng.randrange(5))],
            "subprotocols": [piled(rng).decode("latin-1") for _ in range(rng.randrange(3))],
        }
        try:
            rng.choice(doors).enter(scope)
            admitted += 1
        except Refused as refused:
            assert refused.refusal.status in (400, 401, 403)
        fields = scope["query_string"].split(b"&")
        assert kind == "http" or not any(field.startswith(b"ticket=") for field in fields)
    assert 1000 < admitted < 19_000


def test_a_ticket_is_taken_out_of_the_query_whatever_becomes_of_it() -> None:
    door = Door(api_key="secret")
    scope: dict[str, Any] = {
        "type": "websocket",
        "path": "/v1/responses",
        "query_string": b"a=1&ticket=ticket_x&b=2&ticket=y",
        "server": None,
        "headers": [],
        "subprotocols": [],
    }
    try:
        door.enter(scope)
    except Refused as refused:
        assert refused.refusal.status == 401
    assert scope["query_string"] == b"a=1&b=2"
