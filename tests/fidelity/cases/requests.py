"""Requests: what reaches the provider of them, and which ones must not."""

from typing import Any, Final

from fidelity.cases.building import (
    CHAT,
    HELLO,
    PLAIN_STREAM,
    SOUND,
    Differs,
    everywhere,
    in_one_piece,
    on,
)
from fidelity.cases.endpoints import NAMED, NOT_AT_OPENROUTER, VECTOR, WAV, WHISPER, form
from fidelity.cases.errors import FASTAPI
from fidelity.differences import (
    AMBIGUOUS,
    FIELD_REFUSED,
    MODEL_CHOSEN,
    OPTION_REFUSED,
    REBUILT,
    UNOFFERED,
    UNSUPPORTED,
)
from fidelity.model import USERS_OWN, Ask, Case, Naming, Route
from support.provider_script import stream, whole

TRANSCRIPT: Final = b'{"text":"hello"}'
VECTORS: Final = b'{"object":"list","data":[{"object":"embedding","index":0,"embedding":[1]}]}'
BIG: Final = (WAV[0], b"R" * 70_000)
TRANSCRIBE: Final = (NAMED.format("model"), b"gpt-4o-transcribe")


def passed(name: str, sent: bytes, **more: Any) -> Case:
    """A chat whose body must reach the provider as it is, unless a difference says otherwise."""
    ask = Ask(CHAT.path, sent)
    return in_one_piece(f"request {name}", SOUND, ask, **more)


def refused(name: str, body: bytes) -> Case:
    """A chat that names its model in two ways."""
    return passed(name, body, differs=everywhere(AMBIGUOUS), answered=400, error={}, has_sdk=False)


def uploaded(name: str, *parts: tuple[str, bytes], **more: Any) -> Case:
    """A form."""
    return in_one_piece(f"form {name}", TRANSCRIPT, form(*parts), **more)


def unoffered() -> dict[str, Any]:
    """The form's one model is not among those that the operator offers."""
    differs: Differs = {
        **on((Route.DEFAULT,), UNOFFERED),
        **on((Route.OPENROUTER,), UNSUPPORTED),
    }
    return {"differs": differs}


STEERED: Final = on((Route.DEFAULT,), FIELD_REFUSED)
UNHEARD_OF: Final = b'{"model":"unheard-of","messages":[]}'
LISTED: Final[dict[str, Any]] = {"error": {"error.message": Naming("provider-model")}}
"""A refusal of a name says which ones there are."""
PREFERRED: Final = {"selfHostedModelPreference": "provider-model"}
ALWAYS: Final[dict[str, Any]] = {"settings": {"alwaysUseMyModel": True, **PREFERRED}}
OPTIONS: Final = {
    "stream_options null": b'"stream_options":null',
    "include_usage false": b'"stream_options":{"include_usage":false}',
    "another option": b'"stream_options":{"include_obfuscation":false}',
}

CASES: Final[tuple[Case, ...]] = (
    passed("with unknown fields", b'{"model":"provider-model","messages":[],"x_vendor":{"a":[1,null]},"seed":7}'),
    passed("with number formats", b'{"model":"provider-model","messages":[],"temperature":1e0,"top_p":0.90,"seed":12345678901234567890}'),
    passed("with the model last", b'{"messages":[],"z":1,"a":2,"model":"provider-model"}'),
    passed("with blanks", b'{ "model" : "provider-model",\r\n  "messages": [ ] }\n', differs=on((Route.DEFAULT,), REBUILT)),
    passed("with escapes", b'{"model":"provider\\u002dmodel","messages":[{"role":"user","content":"\\ud83d\\ude00\\/"}]}'),
    passed("with a lone surrogate", b'{"model":"provider-model","messages":[{"role":"user","content":"\\ud83d"}]}', has_sdk=False),
    passed("with stream false", b'{"model":"provider-model","messages":[],"stream":false}'),
    passed("with stream null", b'{"model":"provider-model","messages":[],"stream":null}'),
    passed("with a duplicate of another field", b'{"model":"provider-model","messages":[],"seed":1,"seed":2}', has_sdk=False, differs=on((Route.DEFAULT,), REBUILT)),
    passed("with a nested model", b'{"model":"provider-model","messages":[],"metadata":{"model":"vendor/huge","Model":"x"}}'),
    passed("without a model", b'{"messages":[]}', differs=everywhere(MODEL_CHOSEN)),
    passed("for the model default", b'{"model":"default","messages":[]}', differs=everywhere(MODEL_CHOSEN)),
    passed("for a vendor's model", b'{"model":"vendor/huge","messages":[]}', differs=on((Route.DEFAULT,), UNOFFERED), **LISTED),
    passed("for an unknown model", UNHEARD_OF, differs={**everywhere(UNOFFERED), **on((Route.OPENROUTER,), MODEL_CHOSEN)}, listed=(Route.URL,), **LISTED),
    passed("for an unknown model, with OpenRouter's list known", UNHEARD_OF, differs=everywhere(UNOFFERED), listed=(Route.OPENROUTER, Route.URL), is_last=True, **LISTED),
    passed("for an offered model, with alwaysUseMyModel", b'{"model":"small","messages":[]}', differs=on(USERS_OWN, MODEL_CHOSEN), **ALWAYS),
    passed("for an unknown model, with alwaysUseMyModel", UNHEARD_OF, differs={**on((Route.DEFAULT,), UNOFFERED), **on(USERS_OWN, MODEL_CHOSEN)}, **ALWAYS, **LISTED),
    in_one_piece("request for a model that cannot chat, with a preference that can", VECTORS, VECTOR, settings=PREFERRED),
    refused("with two models", b'{"model":"small","messages":[],"model":"vendor/huge"}'),
    refused("with Model beside model", b'{"model":"small","messages":[],"Model":"vendor/huge"}'),
    refused("with MODEL first", b'{"MODEL":"vendor/huge","model":"small","messages":[]}'),
    refused("with an escaped duplicate", b'{"model":"small","messages":[],"\\u006dodel":"vendor/huge"}'),
    passed("with models and route", b'{"model":"provider-model","messages":[],"models":["vendor/huge"],"route":"fallback"}', differs=STEERED, error={"error.param": "models"}),
    passed("with fallbacks", b'{"model":"provider-model","messages":[],"fallbacks":["vendor/huge"]}', differs=STEERED, error={"error.param": "fallbacks"}),
    uploaded("as usual", WHISPER, WAV, **NOT_AT_OPENROUTER),
    uploaded("with the model behind the file", WAV, WHISPER, **NOT_AT_OPENROUTER),
    uploaded("with the model behind 64 KiB", BIG, WHISPER, **NOT_AT_OPENROUTER),
    uploaded("with two models", WHISPER, WAV, TRANSCRIBE, differs=everywhere(AMBIGUOUS), answered=400),
    uploaded("with a file called model", ('Content-Disposition: form-data; name="x"; filename="model"', b"whisper"), TRANSCRIBE, WAV, **unoffered()),
    uploaded("with a decoy in a prompt", (NAMED.format("prompt"), b"name=model\r\n\r\nwhisper\r\n--x"), TRANSCRIBE, WAV, **unoffered()),
    uploaded("without quotes", ("Content-Disposition: form-data; name=model", b"whisper"), WAV, **NOT_AT_OPENROUTER),
    *(
        Case(f"request with {name}", Ask(CHAT.path, PLAIN_STREAM.body[:-1] + b"," + option + b"}", is_stream=True), stream(*HELLO[:-2], HELLO[-1]))
        for name, option in OPTIONS.items()
    ),
    Case(
        "request whose stream_options are refused",
        PLAIN_STREAM,
        stream(*HELLO[:-2], HELLO[-1]),
        everywhere(OPTION_REFUSED),
        refused=b"stream_options",
        refusal=whole(FASTAPI.replace(b"seed", b"stream_options"), 422),
        is_last=True,
        has_sdk=False,
    ),
)  # fmt: skip
