"""Who is answered by a canary: a share of the users, by a hash, so that all processes agree without asking anybody."""

from dataclasses import dataclass, field

import xxhash

__all__ = ["CanaryShare"]

RANGE = 1 << 64
"""Number of the values of a hash."""


@dataclass(frozen=True, slots=True)
class CanaryShare:
    """A share of all users: those whose hash, XXH64 of the id with the salt as its seed, is below it. Another salt
    takes other users.
    """

    share: float
    """From 0 to 1."""
    salt: int
    """From 0 to 2^64 - 1."""
    _below: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_below", int(self.share * RANGE))

    def has(self, user_id: str | None) -> bool:
        """Whether a user belongs to it; a visitor without an id, None, does not."""
        return user_id is not None and xxhash.xxh64_intdigest(user_id.encode(), self.salt) < self._below
