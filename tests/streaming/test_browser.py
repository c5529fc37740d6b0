"""The pages and the browser's client in real headless Chromium, against a real server over a script."""

from __future__ import annotations

from typing import Any

import pytest
from node_clients import CHROMIUM, needs_chromium, needs_node, run_node
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jitney.runtime.testing import Reply

MARKDOWN = """### Title

Some **bold** text, and a [link](https://example.com/a_b).

1. one
   - nested `x < 1`
2. two

```python
a = 1

b = [**2]
```
after
"""
EVIL = (
    "<img src=x onerror=alert(1)> <script>alert(2)</script> [a](javascript:alert(3)) <b>c</b> "
    "[d](data:text/html,x) `<svg onload=alert(4)>` **<iframe src=//x>**"
)
REPLIES = (
    Reply(match="markdown", text=MARKDOWN, token_s=0.001),
    Reply(match="evil", text=EVIL),
    Reply(match="think", text="<think>\nlet me <b>see</b>\n</think>\n\nIt is **4**.", token_s=0.002),
    Reply(match="long", text="tock " * 150, token_s=0.001),
)
SCENARIOS = (
    *(
        "ask",
        "stop",
        "reload",
        "closed",
        "tabs",
        "rewritten",
        "cut",
        "lost",
        "edit",
        "conversations",
        "markup",
        "settings",
    ),
    *("key", "phone", "dashboard", "client", "reasoning", "refused", "offline", "early"),
)


@needs_node
@needs_chromium
@pytest.mark.timeout(360)
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_the_page(serving: Any, scenario: str) -> None:
    options = {"api_key": "secret"} if scenario == "key" else {}
    config = {"reasons": True} if scenario == "reasoning" else None
    async with serving(*REPLIES, config=config, **options) as served:

        async def hold(request: Request) -> Response:
            served.pace.hold(float(request.path_params["after_s"]))
            return Response()

        served.app.router.routes.insert(0, Route("/hold/{after_s}", hold))
        await run_node("page.mjs", served.url, scenario, CHROMIUM or "", timeout_s=300)
        await served.until_idle()
