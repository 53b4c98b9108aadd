"""Last of all: no secret and no prompt stands in any log of the whole run."""

import pytest
from openai import AsyncOpenAI

from support.canaries import PROMPT, Canaries

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_no_log_holds_a_secret_or_a_prompt(alice: AsyncOpenAI, canaries: Canaries) -> None:
    await alice.chat.completions.create(
        model="fake-model", messages=[{"role": "user", "content": PROMPT}]
    )
    logs = canaries.logs()
    assert {"gateway.log", "relay-1.log", "agent-alice.log"} <= {path.name for path in logs}
    assert all(path.stat().st_size for path in logs)
    assert canaries.leaks() == []
