"""Asks a model one question with the official `openai` client and times the answer."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from openai import AsyncOpenAI

ANSWER_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Answer:
    """What was said, and how fast."""

    text: str
    tokens: int
    first_token_s: float
    tokens_per_s: float

    @property
    def first_token_text(self) -> str:
        """For people."""
        return f"{self.first_token_s * 1000:.0f} ms"


async def ask(
    question: str, *, base_url: str, key: str, model: str, on_token: Callable[[str], None]
) -> Answer:
    """Stream one answer, handing over each token as it comes.

    Neither sampling nor the server's prompt cache may differ from one call to the next, or two
    ways to the same model could not be compared.
    """
    async with AsyncOpenAI(base_url=f"{base_url}/v1", api_key=key, max_retries=0) as client:
        begin = time.perf_counter()
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            max_tokens=ANSWER_TOKENS,
            temperature=0,
            seed=1,
            stream=True,
            extra_body={"cache_prompt": False},
        )
        pieces: list[str] = []
        first = last = begin
        async for chunk in stream:
            piece = chunk.choices[0].delta.content if chunk.choices else None
            if piece:
                last = time.perf_counter()
                first = first if pieces else last
                pieces.append(piece)
                on_token(piece)
    return Answer(
        text="".join(pieces),
        tokens=len(pieces),
        first_token_s=first - begin,
        tokens_per_s=(len(pieces) - 1) / (last - first) if len(pieces) > 1 else 0.0,
    )
