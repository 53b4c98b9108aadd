from urllib.parse import urlsplit

import pytest

from byoai_shared.base_urls import corrected, endpoint_at_end, has_blank_or_control, has_version


@pytest.mark.parametrize(
    ("url", "endpoint", "expected"),
    [
        ("https://a/v1/chat/completions", "/chat/completions", "https://a/v1"),
        ("https://a/v1/chat/completions/", "/chat/completions", "https://a/v1"),
        ("https://a/v1/Chat/Completions", "/Chat/Completions", "https://a/v1"),
        ("https://a/v1/completions", "/completions", "https://a/v1"),
        ("https://a:8443/openai/v1/models", "/models", "https://a:8443/openai/v1"),
        ("https://a/v1/messages", "/messages", "https://a/v1"),
        ("https://a/v1/responses", "/responses", "https://a/v1"),
        ("https://a/v1/embeddings", "/embeddings", "https://a/v1"),
        ("https://a/chat/completions", "/chat/completions", "https://a/v1"),
        ("http://ollama:11434/api/chat", "/api/chat", "http://ollama:11434/v1"),
    ],
)
def test_an_endpoint_is_taken_off_the_end(url: str, endpoint: str, expected: str) -> None:
    parts = urlsplit(url)
    assert endpoint_at_end(parts.path) == endpoint
    assert corrected(parts) == expected


@pytest.mark.parametrize(
    "path",
    ["", "/", "/v1", "/v1/", "/openai/v1", "/models/v1", "/chat/completions/v1", "/my-models"],
)
def test_a_base_url_that_ends_elsewhere_is_left_alone(path: str) -> None:
    assert endpoint_at_end(path) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        *((path, True) for path in ("/v1", "/v1/", "/api/v1", "/openai/v1", "/v1beta/openai")),
        *((path, True) for path in ("/compatible-mode/v1", "/api/paas/v4", "/api/v3")),
        *((path, False) for path in ("", "/", "/api", "/openai", "/vllm", "/v", "/x-v1")),
    ],
)
def test_a_version_is_a_segment_of_its_own(path: str, *, expected: bool) -> None:
    assert has_version(path) is expected


@pytest.mark.parametrize("url", ["https://a b", "https://a\n", "\thttps://a", "https://a\u00a0b"])
def test_what_urlsplit_drops_or_accepts_is_found(url: str) -> None:
    assert has_blank_or_control(url)
    assert not has_blank_or_control("https://a.example/v1")
