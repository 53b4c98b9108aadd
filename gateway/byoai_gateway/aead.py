"""AES-256-GCM with a random nonce in front: the one cipher of the vault and its keys.

A nonce is never given by a caller: the same key may encrypt many times.
"""

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16


def encrypt(key: bytes, plain: bytes, context: bytes) -> bytes:
    """Encrypt; only the same context decrypts it."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, context)


def decrypt(key: bytes, record: bytes, context: bytes) -> bytes:
    """Decrypt.

    Raises:
        ValueError: another key or another context encrypted it, or it was damaged.
    """
    nonce, content = record[:NONCE_BYTES], record[NONCE_BYTES:]
    try:
        return AESGCM(key).decrypt(nonce, content, context)
    except InvalidTag as error:
        raise ValueError("the key or the context is another") from error
