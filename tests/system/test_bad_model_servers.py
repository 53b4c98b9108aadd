"""Whatever the model server does, the client sees OpenAI's error shape and never half an answer."""

from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from support.canaries import PROMPT, Canaries
from support.house import StackMaker, client_of, error_keys, read_into
from support.model_server import MODELS, serving
from support.provider import Provider, Request, providing, sound
from support.provider_script import MODEL as PROVIDERS_MODEL
from support.provider_script import Close, Die, Script, refusal

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL = MODELS[0]


async def failure(alice: AsyncOpenAI, does: str) -> openai.APIStatusError:
    """The error that the client raises for a whole answer."""
    with pytest.raises(openai.APIStatusError) as failed:
        await alice.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": PROMPT}],
            extra_body={"fake": {"does": does, "tokens": 50}},
        )
    return failed.value


async def test_endless_headers_are_a_bad_gateway(alice: AsyncOpenAI) -> None:
    error = await failure(alice, "send_endless_headers")
    assert error.status_code == 502
    assert error.body is not None


async def test_its_own_500_stays_one_in_its_own_words(alice: AsyncOpenAI) -> None:
    error = await failure(alice, "answer_500")
    assert error.status_code == 500
    assert "out of memory" in error.message


async def test_a_stream_that_dies_is_never_taken_for_whole(alice: AsyncOpenAI) -> None:
    stream = await alice.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": PROMPT}],
        stream=True,
        extra_body={"fake": {"does": "die_in_mid_answer", "tokens": 50, "every_s": 0.01}},
    )
    pieces: list[str] = []
    with pytest.raises((openai.APIError, httpx2.HTTPError)):
        await read_into(pieces, stream)
    assert 0 < len(pieces) < 50


async def test_an_answer_that_dies_is_never_taken_for_whole(alice: AsyncOpenAI) -> None:
    with pytest.raises((openai.APIError, httpx2.HTTPError)):
        await alice.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": PROMPT}],
            extra_body={"fake": {"does": "die_in_mid_answer", "tokens": 5000}},
        )


async def test_one_that_refuses_and_one_that_hangs(
    make_stack: StackMaker, canaries: Canaries
) -> None:
    """Seen when the agent began, gone now; then back, but silent before its first header."""
    async with make_stack(agent={"limits.first_byte_s": 0.5}) as stack:
        async with serving() as server:
            url = server.url
            tunnel = await stack.open_tunnel("alice", [url])
            canaries.add(tunnel.token, tunnel.join_code)
            async with client_of(stack, tunnel) as client:
                hung = await failure(client, "hang")
        async with client_of(stack, tunnel) as client:
            refused = await failure(client, "answer")
    assert hung.status_code == 504
    assert refused.status_code in {502, 503}
    for error in (hung, refused):
        assert error_keys(error) >= {"message", "type", "param", "code"}


BREAKS: dict[str, Script] = {
    "closed": (Close(),),
    "reset": (Die(with_reset=True),),
    "not HTTP": (b"SSH-2.0-x\r\n\r\n", Close()),
    "half a head": (b"HTTP/1.1 200 OK\r\ncontent-ty", Close()),
}


def posts(provider: Provider) -> int:
    return sum(it.method == "POST" for it in provider.requests)


async def test_a_request_that_has_left_is_sent_once(
    make_stack: StackMaker, canaries: Canaries
) -> None:
    """The agent knows how far it got; by an ordinary client, whose retries would hide ours."""
    breaks: list[Script] = []

    def answer_to(request: Request) -> Script:
        """What was ordered for a POST; the agent asks for models whenever it likes."""
        return breaks.pop() if breaks and request.method == "POST" else sound(request)

    patient = {"router.breaker_failures": 100}
    async with providing() as server, make_stack(gateway=patient) as stack:
        server.otherwise = answer_to
        tunnel = await stack.open_tunnel("alice", [server.url])
        canaries.add(tunnel.token, tunnel.join_code)
        fields = {"authorization": f"Bearer {tunnel.token}"}
        asked: dict[str, Any] = {"model": PROVIDERS_MODEL, "messages": [], "store": True}
        async with httpx2.AsyncClient(base_url=stack.gateway_url, headers=fields) as client:
            for name, script in BREAKS.items():
                for stream in (False, True):
                    before = posts(server)
                    breaks.append(script)
                    answer = await client.post(
                        "/v1/chat/completions", json={**asked, "stream": stream}
                    )
                    assert (answer.status_code, posts(server) - before) == (502, 1), name
                    assert answer.json()["error"]["code"] in {
                        "connection_lost",
                        "malformed_answer",
                    }
                    assert answer.headers["x-byoai-attempts"] == "1"
            breaks.append(refusal(503))
            before = posts(server)
            answer = await client.post("/v1/chat/completions", json={**asked, "store": False})
            assert (answer.status_code, posts(server) - before) == (200, 2)
