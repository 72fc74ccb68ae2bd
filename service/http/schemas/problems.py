"""Problem documents (RFC 9457): the body of every error."""

from pydantic import BaseModel, Field

__all__ = ["Problem", "ProblemField"]


class ProblemField(BaseModel):
    """One field of a request that is wrong."""

    field: str
    expected: str
    received: str


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str = Field(description="As in the header `X-Request-ID`, and in the service's log.")
    errors: list[ProblemField] | None = None
