"""Which fields of a body go to which kind of provider."""

import json
from typing import Any

import msgspec
import pytest

from byoai_gateway.providers.field_table import (
    USERS_OWN,
    FieldPolicy,
    dropped_fields,
    of_default,
)
from byoai_gateway.router.endpoints import find
from byoai_gateway.router.failures import AttemptFailed, FailureKind
from byoai_gateway.router.upstream import Call, ProviderName
from byoai_shared.http1.head import RequestHead

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
FREE = of_default(is_limited=False, is_fallback=False)
LIMITED = of_default(is_limited=True, is_fallback=False)
FALLBACK = of_default(is_limited=False, is_fallback=True)
LIMITED_FALLBACK = of_default(is_limited=True, is_fallback=True)
POLICIES = (FREE, LIMITED, FALLBACK, USERS_OWN)
KEPT, DROPPED, REFUSED = "kept", "dropped", "refused"


def call_of(body: bytes, path: str = CHAT) -> Call:
    endpoint = find("POST", path)
    assert endpoint is not None
    fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    return Call(endpoint, RequestHead("POST", path), body, fields, "m", False, False, "id-1")


def form_of(*names: str) -> Call:
    endpoint = find("POST", TRANSCRIPTIONS)
    assert endpoint is not None
    head, form = RequestHead("POST", TRANSCRIPTIONS), frozenset(names)
    return Call(endpoint, head, b"", None, "m", False, False, "id-1", form=form)


def fate(call: Call, name: str, policy: FieldPolicy) -> str:
    try:
        dropped = dropped_fields(ProviderName.DEFAULT, call, policy)
    except AttemptFailed as error:
        failure = error.failure
        assert (failure.kind, failure.status) == (FailureKind.REJECTED, 400)
        assert (failure.error.code, failure.error.param) == ("field_not_allowed", name)
        assert f"does not take {name}: it " in failure.error.message
        return REFUSED
    assert dropped <= {name}
    return DROPPED if dropped else KEPT


CHOOSES = (KEPT, REFUSED, DROPPED, KEPT)
REDIRECTS = (REFUSED, REFUSED, DROPPED, KEPT)
FOREIGN = (KEPT, KEPT, DROPPED, KEPT)
OWN = (KEPT, KEPT, KEPT, KEPT)
TABLE = [
    *((CHAT, name, CHOOSES) for name in ("models", "route", "provider", "preset", "plugins")),
    *((CHAT, name, CHOOSES) for name in ("fallbacks", "context_window_fallbacks", "model_list")),
    *((CHAT, name, CHOOSES) for name in ("custom_llm_provider", "deployment_id", "engine")),
    *((CHAT, name, CHOOSES) for name in ("mock_response", "prompt_id", "tags", "lora_path")),
    *((CHAT, name, CHOOSES) for name in ("Models", "ROUTE", "fallback\u017f", "providerOptions")),
    *((CHAT, name, CHOOSES) for name in ("customLlmProvider", "models\0", "\uff52oute")),
    *((CHAT, name, REDIRECTS) for name in ("api_base", "base_url", "api_key", "user_config")),
    *((CHAT, name, REDIRECTS) for name in ("extra_body", "extra_headers", "headers", "apiBase")),
    *((CHAT, name, REDIRECTS) for name in ("input_cost_per_token", "kv_transfer_params")),
    *((CHAT, name, FOREIGN) for name in ("reasoning", "include_reasoning", "usage", "top_a")),
    *((CHAT, name, FOREIGN) for name in ("transforms", "session_id", "debug", "trace")),
    *((CHAT, name, FOREIGN) for name in ("image_config", "cache_control", "min_p", "top_k")),
    *((CHAT, name, FOREIGN) for name in ("repetition_penalty", "stop_server_tools_when")),
    *((CHAT, name, OWN) for name in ("prediction", "verbosity", "user", "modalities", "stop")),
    *((CHAT, name, OWN) for name in ("reasoning_effort", "metadata", "service_tier", "seed")),
    *((CHAT, name, OWN) for name in ("model", "messages", "prompt_cache_options")),
    (RESPONSES, "reasoning", OWN),
    (RESPONSES, "usage", FOREIGN),
    (RESPONSES, "top_k", FOREIGN),
    (RESPONSES, "prompt", OWN),
    (MESSAGES, "top_k", OWN),
    (MESSAGES, "cache_control", OWN),
    (MESSAGES, "thinking", OWN),
    (MESSAGES, "reasoning", FOREIGN),
    (MESSAGES, "fallbacks", CHOOSES),
    ("/v1/messages/count_tokens", "cache_control", OWN),
    ("/v1/embeddings", "provider", CHOOSES),
    ("/v1/images/generations", "provider", CHOOSES),
    ("/v1/rerank", "top_n", OWN),
]


@pytest.mark.parametrize(("path", "name", "fates"), TABLE)
def test_what_becomes_of_a_field(path: str, name: str, fates: tuple[str, ...]) -> None:
    call = call_of(json.dumps({"model": "m", name: ["x"]}).encode(), path)
    assert tuple(fate(call, name, policy) for policy in POLICIES) == fates


@pytest.mark.parametrize("name", ["models", "api_base"])
def test_a_field_that_says_nothing_is_dropped(name: str) -> None:
    call = call_of(json.dumps({"model": "m", name: None}).encode())
    assert fate(call, name, LIMITED) == DROPPED


def test_the_reason_is_told() -> None:
    with pytest.raises(AttemptFailed) as caught:
        dropped_fields(ProviderName.DEFAULT, call_of(b'{"models": []}'), LIMITED)
    assert caught.value.failure.error.message == (
        "the default provider does not take models: it chooses another model or provider than "
        "the field model; leave it out"
    )


@pytest.mark.parametrize(
    ("name", "fates"),
    [
        ("fallbacks", (KEPT, REFUSED, REFUSED, KEPT)),
        ("fallbacks[]", (KEPT, REFUSED, REFUSED, KEPT)),
        ("fallbacks[0][model]", (KEPT, REFUSED, REFUSED, KEPT)),
        ("Models", (KEPT, REFUSED, REFUSED, KEPT)),
        ("api_base", (REFUSED, REFUSED, REFUSED, KEPT)),
        ("reasoning", (KEPT, KEPT, KEPT, KEPT)),
        ("timestamp_granularities[]", (KEPT, KEPT, KEPT, KEPT)),
    ],
)
def test_a_form_passes_as_it_came_or_not_at_all(name: str, fates: tuple[str, ...]) -> None:
    call = form_of("file", "model", name)
    assert tuple(fate(call, name, policy) for policy in POLICIES) == fates


FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"model": "x"}}}


TOOLS: list[tuple[Any, bool]] = [
    ([], False),
    (None, False),
    ("text", False),
    ([FUNCTION], False),
    ([{"type": "function", "name": "f", "parameters": {"properties": {"model": {}}}}], False),
    ([{"name": "f", "input_schema": {}}], False),
    ([{"type": "image_generation"}], False),
    ([{"type": "image_generation", "model": None}], False),
    ([FUNCTION, {"type": "image_generation", "model": "gpt-image-1"}], True),
    ([{"type": "advisor_20260301", "name": "advisor", "model": "claude"}], True),
    ([{"type": "openrouter:fusion", "parameters": {"analysis_models": ["x"]}}], True),
    ([{"type": "OpenRouter:subagent"}], True),
    ([{"type": "x", "Model": "y"}], True),
    ([{"type": "x", "model": 5}], True),
    ([{"type": 5}], True),
    ([7], True),
]


@pytest.mark.parametrize(("tools", "is_refused"), TOOLS)
def test_a_tool_runs_no_model_of_its_own(tools: Any, *, is_refused: bool) -> None:
    body: dict[str, Any] = {"model": "m", "tools": tools}
    call = call_of(json.dumps(body).encode())
    param = f"tools[{len(tools) - 1}]" if tools else "tools"
    for policy in (LIMITED, LIMITED_FALLBACK):
        assert (refused_param(call, policy) == param) is is_refused
    for policy in (FREE, FALLBACK):
        assert refused_param(call, policy) is None


def refused_param(call: Call, policy: FieldPolicy) -> str | None:
    try:
        dropped_fields(ProviderName.DEFAULT, call, policy)
    except AttemptFailed as error:
        return error.failure.error.param
    return None


def test_a_second_spelling_of_tools_is_looked_at() -> None:
    call = call_of(b'{"tools": [], "Tools": [{"type": "x", "type": "openrouter:fusion"}]}')
    with pytest.raises(AttemptFailed, match="more than one field 'type'"):
        dropped_fields(ProviderName.DEFAULT, call, LIMITED)
