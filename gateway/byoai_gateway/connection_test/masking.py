"""Takes a key out of sentences that others wrote: providers like to quote one in their errors.

It looks for the key as it is and as JSON, HTML and addresses write it. Of a very short key every
other word holds a piece, so that a sentence with it is replaced as a whole.
"""

import html
import json
from typing import Final
from urllib.parse import quote, quote_plus

from byoai_shared.secret import Secret

MASK: Final = "***"
SHORT: Final = 8
"""Characters; a key of fewer is no name of anything that can be told from other words."""


def without(secret: Secret | None, sentence: str, instead: str) -> str:
    """Mask a key in a sentence; say `instead` if the key is too short for that."""
    if secret is None:
        return sentence
    key = secret.reveal()
    found = [form for form in _forms(key) if form in sentence]
    if found and len(key) < SHORT:
        return instead
    for form in found:
        sentence = sentence.replace(form, MASK)
    return sentence


def _forms(key: str) -> list[str]:
    """How a key may stand in a text, the longest first: a shorter one may be part of it."""
    once = json.dumps(key)[1:-1]
    slashed = once.replace("/", "\\/")
    # As Go writes JSON, so that it can stand in HTML.
    angled = once.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    twice = json.dumps(once)[1:-1]
    in_html = (html.escape(key), html.escape(key, quote=False))
    in_addresses = (quote(key), quote(key, safe=""), quote_plus(key))
    forms = {key, once, slashed, angled, twice, repr(key)[1:-1], *in_html, *in_addresses}
    return sorted(forms - {""}, key=len, reverse=True)
