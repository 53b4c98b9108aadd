"""The official `openai` library before faults: many requests at once, each with its own order.

Reads a list of orders from the command line and prints a list of problems in the same order; a
problem is empty where the application got its answer.
"""

import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

from openai import AsyncOpenAI

LONGEST_S = 120.0
TEXT = "Hello there"


async def ask(client: AsyncOpenAI, order: Mapping[str, Any]) -> str | None:
    """The text of one chat."""
    messages: Any = [{"role": "user", "content": order["prompt"]}]
    chat = client.chat.completions
    if not order["stream"]:
        answer = await chat.create(model=order["model"], messages=messages)
        return answer.choices[0].message.content
    async with chat.stream(model=order["model"], messages=messages) as stream:
        whole = await stream.get_final_completion()
        return whole.choices[0].message.content


async def problem_of(order: Mapping[str, Any]) -> str:
    """What kept the application from its answer, or nothing."""
    async with AsyncOpenAI(base_url=order["base_url"], api_key=order["key"]) as client:
        try:
            async with asyncio.timeout(LONGEST_S):
                text = await ask(client, order)
        except Exception as error:  # noqa: BLE001 -- whatever the library raises is the result
            return f"{type(error).__name__}: {error}"
    return "" if text == TEXT else f"the answer was {text!r}"


async def problems_of(orders: list[Mapping[str, Any]]) -> list[str]:
    """All at the same time."""
    return list(await asyncio.gather(*(problem_of(order) for order in orders)))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(problems_of(json.loads(sys.argv[1])))))
