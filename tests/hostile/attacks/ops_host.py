"""A page on the internet makes an operator's browser ask the ops listeners (DNS rebinding)."""

from hostile.place import NotRefused, Place, Size


async def of_another_page(place: Place, _size: Size) -> str:
    """Ask for each page by the name of the attacker's site."""
    answers: list[str] = []
    for listener in ("gateway.ops", "relay.ops"):
        for path in ("/metrics", "/readyz"):
            answer = await place.page(listener, path, host="evil.example")
            if not answer.startswith("HTTP/1.1 421 "):
                raise NotRefused(f"{listener} answered {path} with {answer[9:12]}")
            answers.append(answer)
    return f"{len(answers)} pages asked for by another name: 421"
