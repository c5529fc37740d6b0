"""The script gives the same answers through the padded engine as through the dynamic one."""

from __future__ import annotations

from jitney.runtime import DynamicEngine, SamplingParams
from jitney.runtime.engines.padded import PaddedEngine
from jitney.runtime.testing import Reply, Script, ScriptedBackend

SCRIPT = Script(
    reply=[Reply(match="sky", text="Rayleigh scattering. " * 3), Reply(match="bad", text="no", fail_after=1)]
)
PROMPTS = ["why is the sky blue", "echo", "bad", "x" * 100]


async def test_padded_equals_dynamic() -> None:
    params = SamplingParams(max_tokens=30, n=2, stop=["scat"])
    padded = PaddedEngine(ScriptedBackend(SCRIPT))
    await padded.start()
    plain = await padded.generate(PROMPTS, params)
    await padded.close()
    async with DynamicEngine(ScriptedBackend(SCRIPT)) as engine:
        paged = await engine.generate(PROMPTS, params)
    assert [answer["choices"] for answer in plain] == [answer["choices"] for answer in paged]
    assert [answer["error"] for answer in plain] == [answer["error"] for answer in paged]
