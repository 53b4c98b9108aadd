"""Answers in one piece hold to the rules of streams: each failure, through a running gateway."""

import asyncio
import json
import socket
from pathlib import Path

import pytest

from byoai_gateway.provider_config import OpenRouterSection
from byoai_gateway.router import asking
from support.chain import bring_own as choose_own
from support.chain import chain
from support.control import FakeClock
from support.gateway import Gateway, open_gateway
from support.loop_clock import stopped
from support.provider import Provider
from support.provider_script import (
    DONE,
    Die,
    Endless,
    Hang,
    Script,
    bytewise,
    chat_answer,
    finish,
    half,
    head,
    refusal,
    role,
    stream,
    stream_to_close,
    token,
    whole,
)

PROMISED = {"content-type": "application/json", "content-length": "99"}


@pytest.mark.parametrize(
    ("script", "reason", "tries"),
    [
        (refusal(401), "key_refused", 1),
        (refusal(402), "credits_spent", 1),
        (refusal(403), "forbidden", 1),
        (refusal(404, "The model `own/model` does not exist", code="model_not_found"),
         "model_not_found", 1),
        (refusal(408), "provider_timeout", 1),
        (refusal(429), "rate_limited", 1),
        (refusal(429, headers={"retry-after": "60"}), "rate_limited", 1),
        (refusal(429, headers={"retry-after": "0"}), "rate_limited", 2),
        (refusal(500), "server_error", 2),
        (refusal(502), "server_error", 2),
        (refusal(503), "server_error", 2),
        (refusal(503, headers={"retry-after": "60"}), "server_error", 1),
        (refusal(504), "provider_timeout", 1),
        ((Hang(),), "first_token_timeout", 1),
        ((head(200, PROMISED), Hang()), "first_token_timeout", 1),
        ((head(200, PROMISED) + b'{"choices": [', Hang()), "first_token_timeout", 1),
        ((Die(),), "connection_lost", 1),
        (half(chat_answer()), "truncated", 1),
        (whole(b"{not json"), "malformed_answer", 1),
        (whole({"error": {"message": "upstream failed"}}), "error_in_answer", 2),
    ],
)  # fmt: skip
async def test_a_failure_moves_to_the_fallback(
    bring_own: Gateway, own: Provider, default: Provider, script: Script, reason: str, tries: int
) -> None:
    own.always(script)
    answer = await bring_own.chat(stream=False)
    assert (answer.status, answer.json) == (200, chat_answer())
    assert answer.headers["x-byoai-provider"] == "default"
    assert answer.headers["x-byoai-fallback-reason"] == reason
    assert answer.headers["x-byoai-attempts"] == str(tries + 1)
    assert len(own.requests) == tries
    assert (await default.request()).json["model"] == "default-model"


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_refused_request_is_answered_as_it_is(
    bring_own: Gateway, own: Provider, default: Provider, status: int
) -> None:
    own.always(refusal(status, "temperature must be below 2", code="bad"))
    answer = await bring_own.chat(stream=False)
    assert answer.status == status
    assert (answer.error["message"], answer.error["code"]) == ("temperature must be below 2", "bad")
    assert (len(own.requests), len(default.requests)) == (1, 0)


async def test_single_bytes_are_put_together(gateway: Gateway, default: Provider) -> None:
    default.expect(tuple(bytewise(whole(chat_answer()))))
    assert (await gateway.chat(stream=False)).json == chat_answer()


async def test_a_line_of_5_mb_is_an_answer(gateway: Gateway, default: Provider) -> None:
    body = json.dumps(chat_answer("x" * 5_000_000)).encode()
    default.expect(whole(body))
    assert (await gateway.chat(stream=False)).body == body


async def test_what_never_stops_is_not_kept_for_ever(
    bring_own: Gateway, own: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "MOST_BYTES", 100_000)
    chunked = {"content-type": "application/json", "transfer-encoding": "chunked"}
    own.expect((head(200, chunked), Endless(b"4\r\n    \r\n")))
    answer = await bring_own.chat(stream=False)
    assert answer.headers["x-byoai-fallback-reason"] == "malformed_answer"
    await (await own.request()).client_gone()


async def test_a_client_that_leaves_frees_the_provider_at_once(
    gateway: Gateway, default: Provider
) -> None:
    default.expect((Hang(0),))
    asking_ = asyncio.create_task(gateway.chat(stream=False))
    request = await default.request()
    with stopped():
        asking_.cancel()
        await request.client_gone()
    await asyncio.gather(asking_, return_exceptions=True)


@pytest.mark.parametrize("is_stream", [True, False], ids=["streamed", "whole"])
async def test_a_port_that_nobody_listens_at_is_tried_twice(
    tmp_path: Path, default: Provider, own: Provider, *, is_stream: bool
) -> None:
    with socket.socket() as taken:  # bound and not listening: it refuses
        taken.bind(("127.0.0.1", 0))
        nobody = OpenRouterSection(base_url=f"http://127.0.0.1:{taken.getsockname()[1]}/v1")
        config = chain(tmp_path, default, own, openrouter=nobody)
        async with open_gateway(config, FakeClock()) as gateway:
            await choose_own(gateway, fallback=False)
            answer = await gateway.chat(stream=is_stream)
            assert (answer.status, answer.error["code"]) == (502, "unreachable")
            assert answer.headers["x-byoai-attempts"] == "2"
            await gateway.prefer(fallbackToDefault=True)
            answer = await gateway.chat(stream=is_stream)
    assert answer.status == 200
    assert answer.headers["x-byoai-fallback-reason"] == "unreachable"
    assert answer.headers["x-byoai-attempts"] == "3"


# -- what only streams can do, and is looked at nowhere else


@pytest.mark.parametrize("begin", [(), (role(),)], ids=["head", "role"])
async def test_silence_behind_the_head_is_no_answer(
    bring_own: Gateway, own: Provider, begin: tuple[bytes, ...]
) -> None:
    own.always(stream(*begin, Hang()))
    answer = await bring_own.chat()
    assert answer.headers["x-byoai-fallback-reason"] == "first_token_timeout"


@pytest.mark.parametrize(
    "script",
    [stream(token("all"), finish(), Die()), stream_to_close(token("all"), finish())],
    ids=["dies", "closes"],
)
async def test_who_said_that_it_is_through_may_leave_as_it_likes(
    gateway: Gateway, default: Provider, script: Script
) -> None:
    default.expect(script)
    answer = await gateway.chat()
    assert (answer.text, answer.events[-1], answer.is_whole) == ("all", b"[DONE]", True)


async def test_nothing_passes_behind_the_first_done(gateway: Gateway, default: Provider) -> None:
    default.expect(stream(token("all"), finish(), DONE, DONE, token("more")))
    answer = await gateway.chat()
    assert (answer.text, answer.events.count(b"[DONE]")) == ("all", 1)
