"""Which fields of a request's body go to a provider, by the kind of provider.

| group | default | default with `models` | default as fallback | OpenRouter, URL, tunnel |
|---|---|---|---|---|
| chooses a model or provider | kept | refused | dropped | kept |
| redirects the request | refused | refused | dropped | kept |
| OpenRouter's own | kept | kept | dropped | kept |
| sampling that OpenAI refuses | kept | kept | dropped | kept |

The default provider is the operator's: its models are those that the settings name, its address,
key and prices are not users' to change. A field that would change who answers, or what it costs,
is refused, not dropped: the answer would be another than the one that was asked for. Users' own
providers take what they take, with the users' own keys. On fallback a request that was written for
another provider goes to the default one; what only the other understands would make a 400 of it.

A field counts in every spelling that some reader takes for it. Forms pass as they came, so a field
that would have to be dropped from one is refused. `null` says nothing, and is dropped.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Final

import msgspec

from byoai_gateway.router.classify import field_refused
from byoai_gateway.router.failures import AttemptFailed
from byoai_gateway.router.upstream import Call, ProviderName
from byoai_shared.request_body.errors import UnreadableBody
from byoai_shared.request_body.json_object import read_object
from byoai_shared.request_body.names import folded, root


class Group(Enum):
    """What fields do."""

    CHOOSES = auto()
    """Chooses another model, or another provider of it, than `model`."""
    REDIRECTS = auto()
    """Changes the address, the account, the headers or the price of the operator's request."""
    OPENROUTER = auto()
    """Changes how OpenRouter answers, and means nothing anywhere else."""
    SAMPLING = auto()
    """Sampling that OpenRouter, vLLM and llama.cpp know, and OpenAI refuses.

    Without it the answer is a little different; with it there may be none.
    """


_REASONS: Final = {
    Group.CHOOSES: "it chooses another model or provider than the field model",
    Group.REDIRECTS: "it changes where the request goes, with which key, or at what price",
}

_CHOOSING: Final = (
    # OpenRouter: other models, the order of providers, stored presets; plugins may run models.
    *("models", "route", "provider", "preset", "plugins", "fallback_models"),
    # LiteLLM's router, and OpenRouter's and Bifrost's field of the same name.
    *("fallbacks", "default_fallbacks", "context_window_fallbacks", "content_policy_fallbacks"),
    *("context_window_fallback_dict", "model_list", "model_group", "model_group_alias"),
    *("model_alias_map", "router_settings_override", "deployment", "deployment_id"),
    *("specific_deployment", "tags", "litellm_metadata", "allowed_model_region", "region_name"),
    *("custom_llm_provider", "use_litellm_proxy", "hf_model_name", "model_id", "litellm_params"),
    # Groq: the models of its compound systems.
    "compound_custom",
    # LiteLLM's stored prompts name their own model.
    *("prompt_id", "prompt_label", "prompt_version"),
    # LiteLLM's tests: an answer or a failure that no model made.
    *("mock_response", "mock_tool_calls", "mock_timeout", "mock_delay", "mock_testing_fallbacks"),
    *("mock_testing_context_fallbacks", "mock_testing_content_policy_fallbacks"),
    "mock_testing_rate_limit_error",
    # Azure's and OpenAI's former name of the model.
    "engine",
    # Vercel's gateway: order and models; LocalAI: what runs the model; LM Studio: a second model.
    *("providerOptions", "backend", "draft_model"),
    # Adapters, which are other models: llama.cpp, SGLang, TGI, LoRAX.
    *("lora", "lora_path", "adapter_id", "adapter_source"),
)
_REDIRECTING: Final = (
    # LiteLLM: addresses, keys and whole configurations of the client's own.
    *("api_base", "base_url", "api_key", "api_version", "api_type", "user_config", "organization"),
    *("litellm_credential_name", "litellm_embedding_config", "provider_specific_header"),
    *("headers", "extra_headers", "extra_query", "extra_body", "client", "shared_session"),
    *("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "aws_session_name"),
    *("aws_region_name", "aws_profile_name", "aws_role_name", "aws_web_identity_token"),
    *("aws_sts_endpoint", "aws_bedrock_runtime_endpoint", "s3_endpoint_url"),
    *("sagemaker_base_url", "deployment_url", "vertex_credentials", "vertex_project"),
    *("vertex_ai_project", "vertex_ai_location", "vertex_ai_credentials", "aws_external_id"),
    *("vertex_location", "azure_ad_token", "azure_ad_token_provider", "azure_username"),
    *("azure_password", "azure_scope", "tenant_id", "client_id", "client_secret"),
    # LiteLLM: prices, by which the operator's budgets are counted.
    *("base_model", "model_info", "input_cost_per_token", "output_cost_per_token"),
    *("input_cost_per_second", "output_cost_per_second", "input_cost_per_character"),
    *("output_cost_per_character", "input_cost_per_pixel", "output_cost_per_pixel"),
    *("input_cost_per_image", "output_cost_per_image", "tiered_pricing"),
    # vLLM and SGLang: another host to fetch from.
    *("kv_transfer_params", "bootstrap_host", "bootstrap_port"),
)
_OPENROUTERS: Final = (
    *("cache_control", "debug", "deferred_tools", "image_config", "include_reasoning"),
    *("reasoning", "session_id", "stop_server_tools_when", "top_a", "trace", "transforms"),
    "usage",
)
_SAMPLING: Final = ("min_p", "repetition_penalty", "top_k")

_MESSAGES: Final = frozenset({"/messages", "/messages/count_tokens"})
_OWN: Final[Mapping[str, frozenset[str]]] = {
    "cachecontrol": _MESSAGES,
    "reasoning": frozenset({"/responses"}),
    "topk": _MESSAGES,
}
"""Calls of which a field of OPENROUTER or SAMPLING is the documented, own one."""

_GROUPS: Final[Mapping[str, Group]] = {
    folded(name): group
    for group, names in (
        (Group.CHOOSES, _CHOOSING),
        (Group.REDIRECTS, _REDIRECTING),
        (Group.OPENROUTER, _OPENROUTERS),
        (Group.SAMPLING, _SAMPLING),
    )
    for name in names
}

_MOST_REMEMBERED: Final = 512
"""Characters of all names in a body: what is remembered of hostile ones stays small."""
_SHOWN: Final = 100
"""Characters of a name that a client sent."""
_tools: Final = msgspec.json.Decoder(list[msgspec.Raw])
_text: Final = msgspec.json.Decoder(str)


@dataclass(frozen=True, slots=True, eq=False)
class FieldPolicy:
    """What becomes of the groups at one kind of provider; the others are kept.

    Compared by identity: there are a few, and each request looks one up.
    """

    refused: frozenset[Group] = frozenset()
    dropped: frozenset[Group] = frozenset()
    are_models_limited: bool = False
    """Whether tools may name no model of their own."""


USERS_OWN: Final = FieldPolicy()


def of_default(*, is_limited: bool, is_fallback: bool) -> FieldPolicy:
    """Return the policy of the default provider; limited to the models in the settings, or not."""
    if is_fallback:
        return FieldPolicy(dropped=frozenset(Group), are_models_limited=is_limited)
    refused = {Group.REDIRECTS, Group.CHOOSES} if is_limited else {Group.REDIRECTS}
    return FieldPolicy(refused=frozenset(refused), are_models_limited=is_limited)


def dropped_fields(provider: ProviderName, call: Call, policy: FieldPolicy) -> frozenset[str]:
    """Return the names of the fields that do not go to a provider.

    Raises:
        AttemptFailed: a field is refused there; the failure says which and why.
    """
    if not policy.refused and not policy.dropped:
        return frozenset()
    if call.fields is None:
        _check_form(provider, call.form, policy)
        return frozenset()
    names = tuple(call.fields)
    if sum(map(len, names)) <= _MOST_REMEMBERED and _are_plain(names, policy):
        return frozenset()
    dropped: set[str] = set()
    for name, value in call.fields.items():
        group = _group_of(name)
        if group is None:
            if policy.are_models_limited and folded(name) == "tools":
                _check_tools(provider, value)
            continue
        if call.endpoint.path in _OWN.get(folded(name), ()):
            continue
        if group in policy.dropped or (group in policy.refused and bytes(value) == b"null"):
            dropped.add(name)
        elif group in policy.refused:
            raise AttemptFailed(field_refused(provider, name[:_SHOWN], _REASONS[group]))
    return frozenset(dropped)


@lru_cache(maxsize=1024)
def _are_plain(names: tuple[str, ...], policy: FieldPolicy) -> bool:
    """Return whether no field needs a look; an application sends the same few sets of names."""
    is_limited = policy.are_models_limited
    return not any(_group_of(it) or (is_limited and folded(it) == "tools") for it in names)


def _group_of(name: str) -> Group | None:
    return _GROUPS.get(folded(name))


def _check_form(provider: ProviderName, names: Iterable[str], policy: FieldPolicy) -> None:
    kept_out = policy.refused | policy.dropped
    for name in names:
        group = _GROUPS.get(folded(root(name)))
        if group in kept_out and group in _REASONS:
            raise AttemptFailed(field_refused(provider, name[:_SHOWN], _REASONS[group]))


def _check_tools(provider: ProviderName, raw: msgspec.Raw) -> None:
    """Refuse tools that run a model of their own; what is no list is the provider's to refuse."""
    try:
        tools = _tools.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return
    for number, tool in enumerate(tools):
        reason = _why_not(tool)
        if reason is not None:
            raise AttemptFailed(field_refused(provider, f"tools[{number}]", reason))


def _why_not(tool: msgspec.Raw) -> str | None:
    try:
        read = read_object(tool, ("model", "type"))
        kind = _text.decode(read.fields.get("type", b'""'))
    except UnreadableBody as error:
        return str(error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "its type must be a string"
    if read.model is not None or kind.lower().startswith("openrouter:"):
        return "it runs a model of its own choice"
    return None
