"""`jitney key`: a new API key, and the table for the keys file that lets it in."""

from __future__ import annotations

import secrets
from typing import Annotated

import typer

from ..access.keys import Key, digest_of
from .opening import stderr


def key(
    name: Annotated[str, typer.Argument(help="What logs and metrics call it.")],
    trusted: Annotated[bool, typer.Option("--trusted", help="It may say which end user asks.")] = False,
) -> None:
    """Make an API key. Standard output gets the table for --keys FILE, which holds no secret."""
    secret = "jk-" + secrets.token_urlsafe(32)
    made = Key(name=name, sha256=digest_of(secret), trusted=trusted)
    stderr().print(f"The key, shown this once: {secret}", soft_wrap=True)
    lines = ["[[key]]", f'name = "{made.name}"', f'sha256 = "{made.sha256}"']
    typer.echo("\n".join(lines + ["trusted = true"] * trusted))
