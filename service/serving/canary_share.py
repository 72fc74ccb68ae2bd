"""Who is answered by a canary: a share of the users, by a hash, so that all processes agree without asking anybody."""

from dataclasses import dataclass, field

from service.serving.id_hashes import hash_id

__all__ = ["CanaryShare"]

RANGE = 1 << 64
"""Number of the values of a hash."""


@dataclass(frozen=True, slots=True)
class CanaryShare:
    """A share of all users.

    The hash of the user's id is multiplied by an odd number that depends on the salt; a user belongs to the share if
    the product modulo 2^64 is below it (multiply-shift hashing: Dietzfelbinger et al., "A reliable randomized algorithm
    for the closest-pair problem", 1997). So another salt takes other users.
    """

    share: float
    """From 0 to 1."""
    salt: int
    _factor: int = field(init=False, repr=False)
    _below: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_factor", hash_id(f"canary {self.salt}") | 1)
        object.__setattr__(self, "_below", int(self.share * RANGE))

    def has(self, user: int) -> bool:
        """Whether a user belongs to it.

        Args:
            user: hash of the user's id (`service.serving.id_hashes`).
        """
        return (user * self._factor) & (RANGE - 1) < self._below
