"""Parameters of routes that are numbers, each with bounds.

Starlette's own converter `int` takes any number of digits, and Python refuses to parse more than 4,300 of them.
"""

from typing import Annotated

from fastapi import Path, Query
from starlette.convertors import Convertor, register_url_convertor

from service.limits import MAX_CURSOR, MAX_PAGE
from service.use_cases.status import MAX_NUMBER

__all__ = ["Before", "Limit", "Number"]


class _Digits(Convertor[int]):
    """`{name:digits}` in a path: a number of at most ten digits; a path with more has no route."""

    regex = f"[0-9]{{1,{len(str(MAX_NUMBER))}}}"

    def convert(self, value: str) -> int:
        """The number."""
        return int(value)

    def to_string(self, value: int) -> str:
        """Its digits."""
        return str(value)


register_url_convertor("digits", _Digits())

Number = Annotated[int, Path(json_schema_extra={"minimum": 0, "maximum": MAX_NUMBER})]
"""Number of a period or a version, in a path as `{name:digits}`. Numbers out of bounds are 404, like those that do not
exist."""

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Rows of a page.")]
Before = Annotated[int | None, Query(ge=0, le=MAX_CURSOR, description="`next` of the page before.")]
