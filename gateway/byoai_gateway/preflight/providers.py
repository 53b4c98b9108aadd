"""Asks the providers in the settings for their models, once each.

Where the address leads beside the API, a few other addresses of the same server are tried, so
that the right one can be named.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from byoai_gateway import __version__
from byoai_gateway.preflight.answers import (
    Asked,
    is_wrong_path,
    judge,
    judge_models,
    judge_unreachable,
    likely_base_urls,
    model_names,
)
from byoai_gateway.preflight.findings import Finding, Verdict, doubtful
from byoai_gateway.provider_config import DefaultProviderSection, OpenRouterSection
from byoai_gateway.providers.origin import operators_address
from byoai_gateway.providers.outbound import Fetched, Outbound, Unreachable
from byoai_shared.http1.head import Headers, RequestHead
from byoai_shared.secret import Secret

_ANSWER_S: Final = 8.0
_GUESS_S: Final = 3.0
_MAX_BYTES: Final = 16 * 1024 * 1024
_PATH: Final = "/models"


async def check_default(section: DefaultProviderSection, outbound: Outbound) -> Sequence[Finding]:
    """Ask the default provider for its models, and look for those that the settings name."""
    if section.base_url is None:
        return ()
    asked = Asked("default_provider", section.base_url, has_key=section.key is not None)
    try:
        answer = await _ask(outbound, section.base_url, section.key, _ANSWER_S)
    except Unreachable as error:
        return (judge_unreachable(asked, error),)
    is_beside = is_wrong_path(answer)
    suggestion = await _guess(outbound, section.base_url, section.key) if is_beside else None
    finding = judge(asked, answer, suggestion)
    names = model_names(answer)
    return (finding,) if names is None else (finding, *judge_models(_wanted(section), names))


async def check_openrouter(section: OpenRouterSection, outbound: Outbound) -> Sequence[Finding]:
    """Ask OpenRouter for its public list of models.

    Its usual address is in the settings of every gateway: that it cannot be reached from here is
    a failure only where an operator set another.
    """
    asked = Asked("openrouter", section.base_url)
    try:
        answer = await _ask(outbound, section.base_url, None, _ANSWER_S)
    except Unreachable as error:
        finding = judge_unreachable(asked, error)
    else:
        is_beside = is_wrong_path(answer)
        suggestion = await _guess(outbound, section.base_url, None) if is_beside else None
        finding = judge(asked, answer, suggestion)
    if finding.verdict is Verdict.FAILED and section.base_url == OpenRouterSection().base_url:
        message = f"users with OpenRouter keys get no answers: {finding.message}"
        return (doubtful(finding.setting, message, finding.fix or ""),)
    return (finding,)


def _wanted(section: DefaultProviderSection) -> dict[str, str]:
    """The provider's names of the models that the settings name, by setting."""
    wanted = {f"default_provider.models.{name}": it for name, it in section.models.items()}
    if section.model is not None:
        model = section.models.get(section.model, section.model)
        wanted = {"default_provider.model": model, **wanted}
    return wanted


async def _guess(outbound: Outbound, base_url: str, key: Secret | None) -> str | None:
    """Find a base URL of the same server that has models; else the usual one, if any."""
    urls = likely_base_urls(base_url)
    answers = await asyncio.gather(
        *(_ask(outbound, url, key, _GUESS_S) for url in urls), return_exceptions=True
    )
    for url, answer in zip(urls, answers, strict=True):
        if isinstance(answer, Fetched) and model_names(answer) is not None:
            return url
    return None


async def _ask(outbound: Outbound, base_url: str, key: Secret | None, limit_s: float) -> Fetched:
    address = operators_address(base_url)
    headers: Headers = (
        (b"accept", b"application/json"),
        (b"accept-encoding", b"identity"),
        (b"user-agent", f"byoai-gateway/{__version__}".encode()),
    )
    if key is not None:
        headers = (*headers, (b"authorization", b"Bearer " + key.reveal().encode()))
    head = RequestHead("GET", address.path + _PATH, headers)
    return await outbound.fetch(address.origin, head, limit_bytes=_MAX_BYTES, timeout_s=limit_s)
