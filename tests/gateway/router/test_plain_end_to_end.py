"""Answers without a grammar of ours, through a running gateway: bytes, vectors, transcripts."""

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

from support.control import bearer
from support.gateway import Answer, Gateway
from support.provider import ANSWERS, Provider
from support.provider_script import (
    Close,
    Die,
    Hang,
    Script,
    event,
    framed,
    half,
    head,
    refusal,
    stream,
    whole,
)

SOUND = random.Random(1).randbytes(300_000)
AUDIO = {"content-type": "audio/mpeg", "x-audio-seconds": "7"}
CHUNKED = {**AUDIO, "transfer-encoding": "chunked"}
SPEECH = "/v1/audio/speech"
ASKED = {"model": "m", "input": "say it", "voice": "v"}
FORM_TYPE = "multipart/form-data; boundary=xYz"
FORM = (
    b'--xYz\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
    b'--xYz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
    b"Content-Type: audio/wav\r\n\r\n" + SOUND + b"\r\n--xYz--\r\n"
)
TRANSCRIPTIONS = "/v1/audio/transcriptions"


def in_chunks(*steps: Any) -> Script:
    """Bytes in HTTP's chunked coding, with their end."""
    return (head(200, CHUNKED), *(framed(it) for it in steps), b"0\r\n\r\n")


async def upload(gateway: Gateway, form: bytes = FORM) -> Answer:
    """A form, as it is."""
    return await gateway.ask(form, path=TRANSCRIPTIONS, **{"content-type": FORM_TYPE})


@pytest.mark.parametrize(
    "script",
    [
        whole(SOUND, headers={"x-audio-seconds": "7"}, kind="audio/mpeg"),
        in_chunks(SOUND[:1], SOUND[1:70_000], SOUND[70_000:]),
        (head(200, {**AUDIO, "connection": "close"}), SOUND, Close()),
    ],
    ids=["with its length", "in chunks", "to the end of the connection"],
)
async def test_bytes_pass_unchanged(gateway: Gateway, default: Provider, script: Script) -> None:
    default.expect(script)
    answer = await gateway.ask(ASKED, path=SPEECH)
    assert (answer.status, answer.is_whole, answer.body == SOUND) == (200, True, True)
    assert (answer.headers["content-type"], answer.headers["x-audio-seconds"]) == (
        "audio/mpeg",
        "7",
    )
    assert answer.headers["x-byoai-provider"] == "default"
    (record,) = await gateway.records()
    assert (record.endpoint, record.outcome, record.prompt_tokens) == ("/audio/speech", "ok", None)
    assert record.first_token_ms is not None


async def test_events_of_speech_are_bytes_like_any_other(
    gateway: Gateway, default: Provider
) -> None:
    said = (event({"type": "speech.audio.delta"}), b"data: [DONE]\n\n", b"and more")
    default.expect(stream(*said))
    answer = await gateway.ask({**ASKED, "stream_format": "sse"}, path=SPEECH)
    assert answer.body == b"".join(said)


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (in_chunks(SOUND[:9], Die()), "truncated"),
        ((head(200, {**AUDIO, "content-length": "99"}), SOUND[:9], Close()), "truncated"),
        (in_chunks(SOUND[:9], Hang()), "silence"),
        ((head(200, CHUNKED), framed(SOUND[:9]), b"no chunk\r\n"), "malformed_answer"),
    ],
    ids=["dies", "ends early", "silent", "breaks http"],
)
async def test_an_answer_cut_short_is_cut_short_for_the_client_too(
    bring_own: Gateway, own: Provider, default: Provider, script: Script, outcome: str
) -> None:
    own.expect(script)
    answer = await bring_own.ask(ASKED, path=SPEECH)
    assert (answer.status, answer.is_whole, answer.body) == (200, False, SOUND[:9])
    assert len(default.requests) == 0
    (record,) = await bring_own.records()
    assert (record.outcome, record.provider) == (outcome, "openrouter")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (in_chunks(Die()), "truncated"),
        (in_chunks(Hang()), "first_token_timeout"),
        ((head(200, {**AUDIO, "content-length": "99"}), Close()), "truncated"),
        (refusal(503), "server_error"),
    ],
    ids=["dies", "silent", "ends", "refuses"],
)
async def test_what_breaks_before_its_first_byte_moves_to_the_fallback(
    bring_own: Gateway, own: Provider, default: Provider, script: Script, reason: str
) -> None:
    own.always(script)
    default.expect(whole(SOUND, kind="audio/mpeg"))
    answer = await bring_own.ask(ASKED, path=SPEECH)
    assert (answer.status, answer.body == SOUND) == (200, True)
    assert answer.headers["x-byoai-fallback-reason"] == reason


@pytest.mark.parametrize(
    ("path", "said", "counted"),
    [
        ("/v1/embeddings", b'{ "data": [[0.1, 1e-7]],\n "usage": {"prompt_tokens": 4} }', 4),
        ("/v1/rerank", b'{"results":[{"index":0,"relevance_score":0.5}]}  ', None),
        ("/v1/score", b"[1, 2]", None),
        ("/v1/images/generations", b'{"data":[{"b64_json":"AAAA"}],"usage":{"input_tokens":4}}', 4),
        ("/v1/messages/count_tokens", b'{"input_tokens": 4}', None),
    ],
)
async def test_json_passes_byte_for_byte(
    gateway: Gateway, default: Provider, path: str, said: bytes, counted: int | None
) -> None:
    default.expect(whole(said))
    answer = await gateway.ask({"model": "m"}, path=path)
    assert (answer.status, answer.body) == (200, said)
    (record,) = await gateway.records()
    assert (record.outcome, record.prompt_tokens) == ("ok", counted)


async def test_vectors_that_are_an_error_move_to_the_fallback(
    bring_own: Gateway, own: Provider, default: Provider
) -> None:
    own.always(whole({"error": {"message": "no", "code": 502}}))
    answer = await bring_own.ask({"model": "m", "input": "i"}, path="/v1/embeddings")
    assert answer.json == ANSWERS["/embeddings"]
    assert answer.headers["x-byoai-fallback-reason"] == "error_in_answer"
    own.always(half({"data": "x" * 999}))
    answer = await bring_own.ask({"model": "m", "input": "i"}, path="/v1/embeddings")
    assert answer.headers["x-byoai-fallback-reason"] == "truncated"


async def test_large_json_passes_without_being_kept(gateway: Gateway, default: Provider) -> None:
    said = b'{"data": "' + b"A" * 9_000_000 + b'"}'
    default.expect(whole(said))
    answer = await gateway.ask({"model": "m"}, path="/v1/images/generations")
    assert answer.body == said
    default.expect(half({"data": "A" * 18_000_000}))
    answer = await gateway.ask({"model": "m"}, path="/v1/images/generations")
    assert (answer.status, answer.is_whole) == (200, False)


# -- uploads


async def test_a_form_passes_unchanged_and_its_model_is_written_down(
    gateway: Gateway, default: Provider
) -> None:
    default.expect(whole({"text": "hello"}))
    answer = await upload(gateway)
    assert answer.json == {"text": "hello"}
    request = await default.request()
    assert request.body == FORM
    assert request.headers["content-type"] == FORM_TYPE
    assert request.headers["content-length"] == str(len(FORM))
    (record,) = await gateway.records()
    assert (record.endpoint, record.model) == ("/audio/transcriptions", "whisper")


async def test_a_form_is_sent_again_whole(gateway: Gateway, default: Provider) -> None:
    default.expect(refusal(503), whole(b"hello", kind="text/plain"))
    answer = await upload(gateway)
    assert (answer.status, answer.body) == (200, b"hello")
    assert answer.headers["x-byoai-attempts"] == "2"
    assert [it.body == FORM for it in default.requests] == [True] * 2


@pytest.mark.parametrize(
    ("script", "status"), [(whole({"text": "hello"}), 200), (refusal(503), 503)]
)
async def test_a_form_in_chunks_reaches_the_provider_and_is_not_sent_again(
    gateway: Gateway, default: Provider, script: Script, status: int
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(FORM), 50_000):
            yield FORM[at : at + 50_000]

    default.expect(script)
    fields = {"authorization": bearer("alice", gateway.clock), "content-type": FORM_TYPE}
    async with gateway.http.post(
        gateway.url + TRANSCRIPTIONS, data=pieces(), headers=fields
    ) as response:
        assert response.status == status
    assert [it.body == FORM for it in default.requests] == [True]
