"""The fields in the rows of a log, as the JSON objects that a client would send."""

import math
from typing import Any

import polars as pl

from asmg.datasets.columns import split_values
from asmg.datasets.generic import LogForm
from asmg.features import Field, Of
from asmg.log_format import LogFormatError
from service.limits import MAX_CONTEXT_BYTES
from service.use_cases.fields import written

__all__ = ["fields_as_json"]


def fields_as_json(rows: pl.DataFrame, form: LogForm, of: Of) -> list[str | None]:
    """The values of the fields of the context, the users or the items, a JSON object for each row.

    Where the log has no such fields, all are None. Where it has, a row without any value is None for the context and {}
    for a user or an item.

    Raises:
        LogFormatError: an object is longer than a client could send.
    """
    columns = [(column, field) for column, field in form.fields.items() if field.of == of]
    if not columns:
        return [None] * rows.height
    nothing = None if of == "context" else "{}"
    names = [field.name for _, field in columns]
    values = [[_as_sent(field, value) for value in rows[column].to_list()] for column, field in columns]
    objects = [written(dict(zip(names, row, strict=True))) or nothing for row in zip(*values, strict=True)]
    for text in objects:
        if text is not None and (size := len(text.encode())) > MAX_CONTEXT_BYTES:
            raise LogFormatError(form.path, f"at most {MAX_CONTEXT_BYTES} bytes of the fields of the {of}", f"{size}")
    return objects


def _as_sent(field: Field, value: Any) -> Any:
    """What a client would send for a value of the file; None where it is missing."""
    if field.kind == "numeric":
        return None if math.isnan(value) else value
    return split_values(value) if field.kind == "multi" else value
