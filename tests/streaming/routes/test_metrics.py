"""What Prometheus reads: it parses, it counts what happened, and its labels are ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from pace import Pace
from prometheus_client.parser import text_string_to_metric_families

from jitney.streaming.access.keys import digest_of

SKY = {"messages": [{"role": "user", "content": "sky"}]}


async def samples(client: httpx.AsyncClient, key: str | None = None) -> dict[str, Any]:
    """By name and labels."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    answer = await client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found[(sample.name, *sorted(sample.labels.items()))] = sample.value
    return found


def value(found: dict[Any, Any], name: str, **labels: str) -> float:
    return float(found[(name, *sorted({"model": "scripted", **labels}.items()))])


async def read_one_by_one(client: httpx.AsyncClient, pace: Pace) -> None:
    """Three tokens of an answer: the next is made when the last has been read."""
    pace.hold()
    body = {"prompt": "slow", "max_tokens": 3, "stream": True}
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            if line.startswith("data: "):
                pace.hold(0.005)
    pace.go()


async def test_what_happened_is_counted(serving: Any) -> None:
    async with serving() as served, httpx.AsyncClient(base_url=served.url, timeout=60) as client:
        assert (await client.post("/v1/chat/completions", json={**SKY, "n": 2})).status_code == 200
        await read_one_by_one(client, served.pace)
        await client.post("/v1/completions", json={"prompt": "broken"})
        await served.until_idle()
        found = await samples(client)
    assert value(found, "jitney_running") == value(found, "jitney_waiting") == 0
    assert value(found, "jitney_kv_pages_used") == value(found, "jitney_kv_usage_ratio") == 0
    assert value(found, "jitney_kv_pages_total") > 0
    assert value(found, "jitney_finished_total", key="", reason="stop_token") == 2
    assert value(found, "jitney_finished_total", key="", reason="length") == 1
    assert value(found, "jitney_finished_total", key="", reason="error") == 1
    assert value(found, "jitney_generated_tokens_total", key="") >= 3 + 40
    assert value(found, "jitney_prompt_tokens_total", key="") > len("slow")
    assert value(found, "jitney_steps_total") > 0
    for name in ("first_token", "queue", "prefill", "answer"):
        assert value(found, f"jitney_{name}_seconds_count", key="") == 3
        assert value(found, f"jitney_{name}_seconds_bucket", key="", le="+Inf") == 3
    assert value(found, "jitney_token_gap_seconds_count", key="") >= 2


async def test_labels_are_names_of_keys_and_nothing_that_a_client_makes_up(
    serving: Any, tmp_path: Path
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f'[[key]]\nname = "team-a"\ntrusted = true\nsha256 = "{digest_of("secret")}"\n')
    async with (
        serving(keys_file=path, metrics_key="watcher") as served,
        httpx.AsyncClient(base_url=served.url, timeout=60) as client,
    ):
        headers = {"authorization": "Bearer secret", "jitney-user": "ann"}
        for body in ({**SKY, "user": "bob"}, {**SKY, "cache_salt": "zoe"}):
            await client.post("/v1/chat/completions", json=body, headers=headers)
        await client.request("BREW", "/v1/models", headers=headers)
        found = await samples(client, "watcher")
    labels = {pair for name, *pairs in found for pair in pairs if pair[0] != "le"}
    assert labels == {("model", "scripted"), ("key", "team-a"), ("reason", "stop_token")}


async def test_an_engine_that_is_not_open_has_no_metrics(serving: Any) -> None:
    async with serving() as served, httpx.AsyncClient(base_url=served.url, timeout=60) as client:
        assert value(await samples(client), "jitney_running") == 0
        await served.engine.close()
        assert value(await samples(client), "jitney_running") == 0
