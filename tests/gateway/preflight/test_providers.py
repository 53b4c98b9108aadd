"""What `byoai-gateway check` says of providers that are wrong in one way each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from byoai_gateway.preflight import providers
from byoai_gateway.preflight.findings import Finding, Verdict
from byoai_gateway.preflight.providers import check_default, check_openrouter
from byoai_gateway.provider_config import DefaultProviderSection, OpenRouterSection
from byoai_gateway.providers.outbound import Outbound
from byoai_shared.secret import Secret
from support.internet import https, speaking_plainly, trusted_authority
from support.provider import Provider, Request, providing
from support.provider_script import MODEL, Die, Hang, Script, refusal, whole

KEY = "sk-not-to-be-shown"
HTML = whole(b"<!doctype html><title>Welcome</title>", kind="text/html; charset=utf-8")
LIST = whole({"object": "list", "data": [{"id": MODEL}]})


async def found(
    url: str | None,
    *,
    key: str | None = KEY,
    model: str | None = None,
    models: Mapping[str, str] | None = None,
) -> Sequence[Finding]:
    """What the check finds with these settings; the key is in none of it."""
    section = DefaultProviderSection(
        base_url=url,
        key=None if key is None else Secret(key),
        model=model,
        models=dict(models or {}),
    )
    outbound = Outbound(30.0)
    try:
        findings = await check_default(section, outbound)
    finally:
        outbound.close()
    assert KEY not in str(findings)
    return findings


def at(path: str, script: Script, otherwise: Script) -> Callable[[Request], Script]:
    """Answer one path with a script, all others with another."""
    return lambda request: script if request.target == path else otherwise


async def test_without_a_default_provider_nobody_is_asked() -> None:
    assert await found(None) == ()


async def test_a_sound_provider_is_asked_once_with_the_key(default: Provider) -> None:
    findings = await found(default.url, model="small", models={"small": MODEL})
    assert [(it.setting, it.verdict) for it in findings] == [
        ("default_provider.base_url", Verdict.OK),
        ("default_provider.model", Verdict.OK),
        ("default_provider.models.small", Verdict.OK),
    ]
    (request,) = default.requests
    assert (request.method, request.target) == ("GET", "/v1/models")
    assert request.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("script", "setting", "message", "fix"),
    [
        (refusal(401), "key", "refuses the key", "valid"),
        (refusal(402), "key", "credit", "credit"),
        (refusal(403), "key", "does not let this key", "may do"),
        (refusal(404), "base_url", "/v1/models does not exist", "/v1"),
        (refusal(405), "base_url", "does not exist", "/v1"),
        (refusal(500), "base_url", "status 500", "proxy"),
        (whole(b"", 502), "base_url", "status 502", "proxy"),
        (HTML, "base_url", "HTML page", "documentation"),
        (whole(b""), "base_url", "not a list", "documentation"),
        (whole({"object": "list"}), "base_url", "not a list", "documentation"),
        (
            whole(b"", 301, {"location": "https://llm.example/api/v1/models?key=x"}),
            "base_url",
            "redirects",
            "https://llm.example/api/v1",
        ),
        ((Die(),), "base_url", "no whole", "https://"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n\r\n",), "base_url", "no whole", "HTTP server"),
    ],
)
async def test_each_fault_has_its_setting_and_its_cure(
    default: Provider, script: Script, setting: str, message: str, fix: str
) -> None:
    default.always(script)
    (finding,) = await found(default.url)
    assert finding.verdict is Verdict.FAILED
    assert finding.setting == f"default_provider.{setting}"
    assert message in finding.message
    assert fix in (finding.fix or "")
    assert "key=x" not in str(finding)


async def test_a_provider_that_wants_a_key_is_told_from_one_that_refuses_it(
    default: Provider,
) -> None:
    default.always(refusal(401))
    (finding,) = await found(default.url, key=None)
    assert finding.message.startswith("the provider requires a key")
    assert finding.fix == "set default_provider.key_file"


async def test_a_limit_at_the_moment_is_no_failure(default: Provider) -> None:
    default.always(refusal(429))
    (finding,) = await found(default.url)
    assert finding.verdict is Verdict.WARNING


@pytest.mark.parametrize("other", [refusal(404), HTML])
async def test_the_right_address_is_found_where_the_given_one_leads_beside(
    default: Provider, other: Script
) -> None:
    server = default.url.removesuffix("/v1")
    for given, right in (("", "/v1"), ("/v1", "/api/v1"), ("/openai", "/openai/v1")):
        default.otherwise = at(f"{right}/models", LIST, other)
        (finding,) = await found(server + given)
        assert finding.verdict is Verdict.FAILED
        assert finding.fix == f"write {server}{right}"


async def test_a_model_that_is_not_listed_is_named_with_those_that_are(default: Provider) -> None:
    findings = await found(default.url, model="provider-modle", models={"big": "huge"})
    assert [(it.setting, it.verdict) for it in findings[1:]] == [
        ("default_provider.model", Verdict.FAILED),
        ("default_provider.models.big", Verdict.FAILED),
    ]
    assert "no model 'provider-modle'" in findings[1].message
    assert MODEL in (findings[1].fix or "")


async def test_names_of_ollama_match_without_their_tag(default: Provider) -> None:
    default.always(whole({"data": [{"id": "llama3.2:latest"}]}))
    findings = await found(default.url, model="llama3.2")
    assert findings[1].verdict is Verdict.OK


async def test_a_list_without_models_is_doubtful(default: Provider) -> None:
    default.always(whole({"data": None}))
    (finding,) = await found(default.url)
    assert (finding.verdict, finding.setting) == (Verdict.WARNING, "default_provider.base_url")


async def test_a_name_that_does_not_resolve() -> None:
    (finding,) = await found("https://no-such-host.invalid/v1")
    assert "no address for the name no-such-host.invalid" in finding.message
    assert "DNS" in (finding.fix or "")


async def test_a_port_where_nothing_listens() -> None:
    (finding,) = await found("http://127.0.0.1:9/v1")
    assert "refused" in finding.message
    assert "port" in (finding.fix or "")


async def test_https_to_a_server_without_tls() -> None:
    async with speaking_plainly() as port:
        (finding,) = await found(f"https://127.0.0.1:{port}/v1")
    assert "no TLS" in finding.message
    assert "write http://" in (finding.fix or "")


async def test_https_to_a_server_that_hangs_up(default: Provider) -> None:
    (finding,) = await found(default.url.replace("http://", "https://"))
    assert "write http://" in (finding.fix or "")


async def test_a_certificate_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trusted_authority(tmp_path, monkeypatch)
    async with providing(https(authority, "other.example")) as provider:
        (finding,) = await found(provider.url)
    assert "certificate" in finding.message


async def test_one_that_does_not_answer_is_waited_for_within_a_limit(
    default: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers, "_ANSWER_S", 0.02)
    default.always((Hang(),))
    (finding,) = await found(default.url)
    assert "within 0.02 s" in finding.message


async def test_openrouter_is_asked_for_its_public_list(default: Provider) -> None:
    outbound = Outbound(30.0)
    (finding,) = await check_openrouter(OpenRouterSection(base_url=default.url), outbound)
    assert (finding.setting, finding.verdict) == ("openrouter.base_url", Verdict.OK)
    assert "authorization" not in default.requests[0].headers
    default.always(HTML)
    (finding,) = await check_openrouter(OpenRouterSection(base_url=default.url), outbound)
    assert finding.verdict is Verdict.FAILED
    outbound.close()


async def test_openrouters_usual_address_may_be_out_of_reach() -> None:
    async def resolve(host: str, _port: int) -> Sequence[object]:
        raise OSError(host)

    outbound = Outbound(30.0, resolve=resolve)  # type: ignore[arg-type] # it only raises
    (finding,) = await check_openrouter(OpenRouterSection(), outbound)
    assert finding.verdict is Verdict.WARNING
    assert "users with OpenRouter keys" in finding.message
    outbound.close()
