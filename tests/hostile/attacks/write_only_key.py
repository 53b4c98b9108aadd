"""Someone holds a user's session, and changes where the user's stored key is sent."""

from contextlib import AsyncExitStack
from typing import Any, Final

from demo.processes import ProcessError
from hostile.place import NotRefused, Place, Size
from support.internet import https
from support.provider import Provider, providing

KEY: Final = "a-key-that-its-user-can-write-only"
USER: Final = "carol"


async def change_the_address(place: Place, _size: Size) -> str:
    """Change only `selfHostedUrl`, then ask; the new server never sees the key."""
    async with AsyncExitStack() as servers:
        own, thief = [
            await servers.enter_async_context(providing(https(place.internet, "127.0.0.1")))
            for _ in range(2)
        ]
        token = await place.stack.user_token(USER)
        preferences: dict[str, Any] = {
            "aiProvider": "self-hosted",
            "selfHostedUrl": own.url,
            "selfHostedAuthKey": KEY,
        }
        await place.stack.choose(token, preferences)
        await _ask(place, token)
        if not _saw_key(own):
            raise AssertionError("the user's own server did not get the key")
        shown = await place.stack.choose(token, {"selfHostedUrl": thief.url})
        await _ask(place, token)
        if _saw_key(thief):
            raise NotRefused("the new server got the key")
    kept = "kept" if shown.get("selfHostedAuthKey") else "dropped"
    return f"key {kept}; {len(thief.requests)} request(s) at the new server, none with the key"


async def _ask(place: Place, token: str) -> None:
    body = {"model": "default", "messages": [{"role": "user", "content": "Hello"}]}
    try:
        await place.stack.call("POST", "/v1/chat/completions", token, body)
    except ProcessError as error:
        if " was answered " not in str(error):
            raise


def _saw_key(server: Provider) -> bool:
    return any(KEY in value for request in server.requests for value in request.headers.values())
