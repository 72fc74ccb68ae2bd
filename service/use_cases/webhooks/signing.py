"""Secrets of webhooks, and the signatures that they make, by the Standard Webhooks specification."""

import base64
import hashlib
import hmac
import secrets

__all__ = ["new_secret", "sign"]

SECRET_PREFIX = "whsec_"
"""Beginning of a secret; the rest is the key in base64."""

SECRET_BYTES = 32
"""Length of a key."""


def new_secret() -> str:
    """A secret that nobody knows yet."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sign(secret: str, message: str, timestamp: int, body: bytes) -> str:
    """The signature of a message, as one part of the header `webhook-signature`.

    Args:
        secret: as `new_secret` makes it.
        message: its id.
        timestamp: of the attempt, in seconds since 1970.
        body: as it is sent.
    """
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.digest(key, f"{message}.{timestamp}.".encode() + body, hashlib.sha256)
    return f"v1,{base64.b64encode(digest).decode()}"
