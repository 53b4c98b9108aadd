from pathlib import PurePosixPath
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoai_agent.policy import (
    OPTIONAL_GROUPS,
    DescribeModel,
    Forward,
    ListModels,
    Names,
    Policy,
)
from byoai_shared.errors import ConfigError

DEFAULT = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/audio/transcriptions",
    "/v1/rerank",
]
NEVER = [
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("GET", "/flush_cache"),
    ("GET", "/start_profile"),
    ("GET", "/release_memory_occupation"),
    ("GET", "/health_generate"),
    ("GET", "/slots"),
    ("GET", "/props"),
    ("POST", "/lora-adapters"),
    ("POST", "/models/load"),
    ("GET", "/cors-proxy"),
    ("POST", "/api/v1/models/load"),
    ("POST", "/api/v1/chat"),
    ("POST", "/api/pull"),
    ("DELETE", "/api/delete"),
    ("GET", "/metrics"),
    ("GET", "/"),
    ("GET", "/docs"),
    ("POST", "/tokenize"),
    ("POST", "/api/chat"),
]
TRICKS = [
    ("POST", "/v1/chat/completions/"),
    ("POST", "/v1//chat/completions"),
    ("POST", "//v1/chat/completions"),
    ("POST", "/v1/./chat/completions"),
    ("POST", "/v1/chat/../chat/completions"),
    ("POST", "/v1/chat/completions#x"),
    ("POST", "/v1/chat/completions/?x=1"),
    ("GET", "/flush_cache?x=/v1/models"),
    ("GET", "?/v1/models"),
    ("POST", "/v1/chat/completions;x"),
    ("POST", "/v1/chat%2Fcompletions"),
    ("POST", "/v1/chat/%63ompletions"),
    ("POST", "/V1/chat/completions"),
    ("POST", "/v1/Chat/Completions"),
    ("POST", "http://elsewhere/v1/chat/completions"),
    ("POST", "v1/chat/completions"),
    ("POST", "\\v1\\chat\\completions"),
    ("post", "/v1/chat/completions"),
    ("GET", "/v1/chat/completions"),
    ("PUT", "/v1/chat/completions"),
    ("OPTIONS", "/v1/chat/completions"),
    ("HEAD", "/v1/models"),
    ("POST", "/v1/models"),
    ("GET", "/v1/models/"),
    ("GET", "/v1/models/a%00b"),
    ("GET", "/v1/models/a%0d%0ab"),
    ("GET", "/v1/models/" + "a" * 257),
    ("DELETE", "/v1/models/a"),
    ("POST", ""),
]


@pytest.mark.parametrize("path", DEFAULT)
def test_default_calls_pass(path: str) -> None:
    decision = Policy().decide("POST", path)
    assert isinstance(decision, Forward)
    assert decision.path == path


@pytest.mark.parametrize(("method", "target"), NEVER + TRICKS)
def test_everything_else_is_not_found(method: str, target: str) -> None:
    assert Policy().decide(method, target) is None


@pytest.mark.parametrize(("method", "target"), NEVER[:-2] + TRICKS)
def test_no_group_opens_what_is_dangerous(method: str, target: str) -> None:
    assert Policy(OPTIONAL_GROUPS).decide(method, target) is None


@pytest.mark.parametrize("query", ["?", "?beta=true", "?x=../../flush_cache", "?a?b"])
def test_a_query_is_dropped_and_never_passed_on(query: str) -> None:
    decision = Policy().decide("POST", f"/v1/messages{query}")
    assert isinstance(decision, Forward)
    assert decision.path == "/v1/messages"
    assert Policy().decide("GET", f"/v1/models{query}") == ListModels()
    assert Policy().decide("GET", f"/v1/models/a{query}") == DescribeModel("a")


def test_models_are_answered_by_the_agent() -> None:
    assert Policy().decide("GET", "/v1/models") == ListModels()


@pytest.mark.parametrize(
    "path", ["meta/llama-3", "meta%2Fllama-3", "../../flush_cache", "%2e%2e/flush_cache"]
)
def test_a_model_id_is_only_ever_a_name(path: str) -> None:
    decision = Policy().decide("GET", f"/v1/models/{path}")
    assert isinstance(decision, DescribeModel)


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=60)
)
def test_a_model_id_is_decoded_once(model: str) -> None:
    assert Policy().decide("GET", f"/v1/models/{quote(model, safe='')}") == DescribeModel(model)


@pytest.mark.parametrize("group", OPTIONAL_GROUPS)
def test_a_group_opens_its_calls_only(group: str) -> None:
    policy = Policy([group])
    for (method, path), names in OPTIONAL_GROUPS[group].items():
        assert Policy().decide(method, path) is None
        assert policy.decide(method, path) == Forward(path, names)
    others = [call for name, calls in OPTIONAL_GROUPS.items() if name != group for call in calls]
    assert all(policy.decide(*call) is None for call in others)


def test_an_unknown_group_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'image' does not exist; there are: .*images"):
        Policy(["image"])


def test_uploads_name_their_model_in_a_form() -> None:
    decision = Policy().decide("POST", "/v1/audio/transcriptions")
    assert isinstance(decision, Forward)
    assert decision.names_model is Names.FORM


@given(st.sampled_from(["GET", "POST", "DELETE"]), st.text(max_size=40))
def test_no_odd_path_is_forwarded(method: str, target: str) -> None:
    decision = Policy(OPTIONAL_GROUPS).decide(method, "/v1/" + target)
    if isinstance(decision, Forward):
        assert decision.path == "/v1/" + target == str(PurePosixPath(decision.path))
