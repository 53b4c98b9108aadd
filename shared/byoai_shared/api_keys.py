"""What the key of an API may look like: it is sent as `Authorization: Bearer KEY` (RFC 6750)."""

from byoai_shared.secret import Secret


def key_fault(key: Secret) -> str | None:
    """Say why a key cannot be sent in a header, without showing it; None if it can."""
    text = key.reveal()
    if not text:
        return "is empty; remove the setting if the server needs no key"
    if text[:7].lower() == "bearer ":
        return 'begins with "Bearer "; give the key alone'
    if not (text.isascii() and text.isprintable()) or " " in text:
        return (
            "contains a space, a line break or another character that an HTTP header must not "
            "contain; copy the key again, as one line of visible ASCII characters"
        )
    return None
