"""The user's own log, CSV or Parquet, of any size; read by `asmg import` and `asmg experiment prepare`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from asmg.datasets.columns import Reading, category_list, identifier, labels, rating, split_values, text, whole_number
from asmg.datasets.events import Events, Ids
from asmg.datasets.field_columns import FieldColumn
from asmg.datasets.field_values import field_value, number_like
from asmg.datasets.gathering import Gathering
from asmg.datasets.log import IdArray, InteractionLog
from asmg.datasets.scan import BLOCK_BYTES, Layout, Malformed, Scan
from asmg.datasets.table import LIST_SEPARATOR
from asmg.datasets.times import TimeForm, check_form, time_of
from asmg.features import MAX_LIST_VALUES, TIME_FIELDS, Field, Kind, Of, Scalar, Schema, SchemaError
from asmg.log_format import FUTURE_TOLERANCE_SECONDS, ColumnMap, LogFormatError

__all__ = ["LogForm", "LogOptions", "distinct_categories", "find_form", "read_generic", "read_log"]

_DELIMITERS = ",;\t|"


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Names and meaning of the columns of a file."""

    columns: ColumnMap = field(default_factory=ColumnMap)
    positives_only: bool | None = None
    """Whether every row is a positive. None: if there is no label column; True: a label column is ignored; False: there
    must be a label column."""
    positive_from: float | None = None
    """Lowest rating of a positive, if the label column holds ratings; None if it holds labels."""
    timestamp_format: TimeForm | None = None
    """Form of the times, see `times.time_of`; None to recognise each value."""
    timezone: str | None = None
    """Time zone (IANA) of times without one."""
    delimiter: str | None = None
    """Delimiter of a CSV file; None for the one of comma, semicolon, tab and | that splits the header into the
    columns."""
    future_seconds: float = FUTURE_TOLERANCE_SECONDS
    """Seconds that an event may be ahead of now."""
    features: Schema | None = None
    """The fields of the log; None for those named below, whose kinds are guessed from their values."""
    some_features: bool = False
    """Whether fields of `features` without a column are skipped, unless they are named below."""
    context: Mapping[str, str] = field(default_factory=dict)
    """Name of a context field → its column; by default the column has the field's name."""
    user_features: Mapping[str, str] = field(default_factory=dict)
    """Name of a user field → its column."""
    item_features: Mapping[str, str] = field(default_factory=dict)
    """Name of an item field → its column."""

    @property
    def named(self) -> dict[Of, dict[str, str]]:
        """Owner → field → column, as given, without hour and weekday, which have no column."""
        context = {name: column for name, column in self.context.items() if name not in TIME_FIELDS}
        return {"context": context, "user": dict(self.user_features), "item": dict(self.item_features)}

    def __post_init__(self) -> None:
        check_form(self.timestamp_format, self.timezone)
        if self.positive_from is not None and self.positives_only:
            raise ValueError("positive_from: expected none with positives only; received both")


@dataclass(frozen=True, kw_only=True)
class LogForm:
    """How a file is read, and the meaning of its columns."""

    path: Path
    layout: Layout
    readings: dict[str, Reading]
    user: str
    item: str
    time: str
    label: str | None
    """None if each row is a positive."""
    categories: str | None
    period: str | None
    fields: dict[str, Field]
    """Column → its field, in the order of `schema`."""
    schema: Schema

    def scan(self, malformed: Malformed = "error", block_bytes: int = BLOCK_BYTES) -> Scan:
        """A pass over the file."""
        return Scan(self.path, self.layout, self.readings, malformed, block_bytes)


def find_form(path: Path, options: LogOptions) -> LogForm:
    """Find out the form of a file from its header and the options. To guess the kinds of fields the whole file is read.

    Raises:
        LogFormatError: the file has no header, or lacks a column.
        ValueError: one column is given two meanings, or a field is unknown.
        OSError: it cannot be opened.
    """
    columns = options.columns
    layout, header = _find_layout(path, options)
    label, categories = columns.label or "label", columns.categories or "categories"
    said = columns.label is not None or options.positives_only is False or options.positive_from is not None
    has_labels = not options.positives_only and (said or label in header)
    has_categories = categories in header or columns.categories is not None
    label_reading = labels() if options.positive_from is None else rating(options.positive_from)
    time = time_of(options.timestamp_format, options.timezone, future_seconds=options.future_seconds)
    wanted = [(columns.user_id, identifier()), (columns.item_id, identifier()), (columns.timestamp, time)]
    wanted += [(label, label_reading)] if has_labels else []
    wanted += [(categories, category_list())] if has_categories else []
    wanted += [(columns.period, whole_number(-(10**15), 10**15))] if columns.period is not None else []
    schema, of_columns = _find_fields(path, layout, header, options)
    wanted += [(column, field_value(field)) for column, field in of_columns]
    if len(dict(wanted)) != len(wanted):
        names = ", ".join(name for name, _ in wanted)
        raise ValueError(f"columns: expected a column of its own for each; received {names}")
    return LogForm(
        path=path,
        layout=layout,
        readings=dict(wanted),
        user=columns.user_id,
        item=columns.item_id,
        time=columns.timestamp,
        label=label if has_labels else None,
        categories=categories if has_categories else None,
        period=columns.period,
        fields=dict(of_columns),
        schema=schema,
    )


def _find_fields(
    path: Path, layout: Layout, header: tuple[str, ...], options: LogOptions
) -> tuple[Schema, list[tuple[str, Field]]]:
    """The schema of a file, and the column of each of its fields."""
    schema, named = options.features, options.named
    if schema is not None:
        for of, columns in named.items():
            known = schema.declared(of)
            if unknown := [name for name in columns if name not in known]:
                expected = f"a field of the {of} that the schema has ({', '.join(known) or 'it has none'})"
                raise ValueError(f"{_OPTIONS[of]}: expected {expected}; received {unknown[0]}")
        found = [(named[field.of].get(field.name, field.name), field) for field in schema.fields]
        if options.some_features:
            found = [(c, field) for c, field in found if c in header or field.name in named[field.of]]
        return schema, found
    columns_of = [(of, name, column) for of, columns in named.items() for name, column in columns.items()]
    kinds = _guess_kinds(path, layout, [column for _, _, column in columns_of])
    try:
        fields = tuple(Field(name, of, *kinds[column]) for of, name, column in columns_of)
        schema = Schema(fields, options.timezone or "UTC")
    except SchemaError as error:
        hint = "a column of another name is given as name=column"
        raise ValueError(f"{error.faults[0]}; {hint}") from None
    return schema, [(column, field) for (_, _, column), field in zip(columns_of, fields, strict=True)]


_OPTIONS: dict[Of, str] = {"context": "context", "user": "user-feature", "item": "item-feature"}


def _guess_kinds(path: Path, layout: Layout, columns: list[str]) -> dict[str, tuple[Kind, int]]:
    """Guess the kind of each column and its maximum number of values per interaction.

    Numbers of which one has a decimal point are numeric. Whole numbers may be codes, so they are categorical like text.
    Lists of a Parquet file are multi.
    """
    if not columns:
        return {}
    with path.open("rb") as file:
        parquet = pl.read_parquet_schema(path) if file.read(4) == b"PAR1" else {}
    lists = {column for column in columns if isinstance(parquet.get(column), pl.List)}
    longest = dict.fromkeys(columns, 1)
    numbers, fractions = set(columns), set[str]()
    # Bad rows are dropped here; the pass that reads the log reports them.
    for block in Scan(path, layout, {column: text() for column in columns}, "drop").blocks():
        for column in columns:
            if column in lists:
                counts = block[column].str.count_matches(LIST_SEPARATOR, literal=True).to_numpy()
                longest[column] = max(longest[column], int(counts.max()) + 1)
                continue
            plain, broken = number_like(block[column])
            numbers -= set() if plain else {column}
            fractions |= {column} if broken else set()
    found: dict[str, tuple[Kind, int]] = {}
    for column in columns:
        if column in lists:
            found[column] = "multi", min(longest[column], MAX_LIST_VALUES)
        else:
            found[column] = "numeric" if column in numbers & fractions else "categorical", 1
    return found


def _find_layout(path: Path, options: LogOptions) -> tuple[Layout, tuple[str, ...]]:
    """The layout whose delimiter splits the header into most of the wanted columns, and that header."""
    columns = options.columns
    wanted = {columns.user_id, columns.item_id, columns.timestamp, columns.label, columns.categories, columns.period}
    wanted |= {column for named in options.named.values() for column in named.values()}
    found: list[tuple[int, int, int, Layout, tuple[str, ...]]] = []
    errors = []
    for n, delimiter in enumerate(options.delimiter or _DELIMITERS):
        layout = Layout(delimiter=delimiter, quoted=True, blanks=True)
        try:
            header = Scan(path, layout, {}, block_bytes=1 << 16).header()
        except LogFormatError as error:
            errors.append(error)
        else:
            found.append((len(wanted.intersection(header)), len(header), -n, layout, header))
    if not found:
        raise errors[0]
    best = max(found, key=lambda way: way[:3])
    return best[3], best[4]


def read_generic(gathering: Gathering, options: LogOptions) -> Events:
    """Read the whole log. If rows differ in an item's categories, the last one with categories decides."""
    path = gathering.raw
    if not path.is_file():
        raise LogFormatError(path, "a CSV or Parquet file", "a folder" if path.is_dir() else "nothing there")
    form = find_form(gathering.read(path), options)
    events = gathering.gather(
        path,
        form.layout,
        form.readings,
        (form.user, form.item, form.time),
        label=form.label,
        category=form.categories,
        believed="last",
        split=distinct_categories,
        fields=form.fields,
    )
    return replace(events, schema=form.schema)


def distinct_categories(text: str) -> tuple[str, ...]:
    """The distinct categories in the text of a column."""
    return tuple(dict.fromkeys(split_values(text)))


def read_log(path: str | Path, options: LogOptions | None = None) -> InteractionLog:
    """Read a small log into memory: one interaction per row, in any order.

    CSV (RFC 4180, UTF-8, with a header line; also compressed by gzip) and Parquet are recognised by their content. If
    rows differ in an item's categories, the last one with categories decides.

    Raises:
        LogFormatError: the content is unexpected.
        OSError: the file cannot be opened.
    """
    form = find_form(Path(path), options or LogOptions())
    frame = pl.concat(form.scan().blocks())
    items, categories = frame[form.item], {}
    if form.categories is not None:
        rows = zip(items, frame[form.categories], strict=True)
        categories = {item: distinct_categories(text) for item, text in rows if text}
    return InteractionLog(
        user_ids=_ids(frame[form.user]),
        item_ids=_ids(items),
        labels=np.ones(frame.height, np.uint8) if form.label is None else frame[form.label].to_numpy(),
        timestamps_ms=frame[form.time].to_numpy(),
        categories=categories,
        period=None if form.period is None else frame[form.period].to_numpy(),
        positives_only=form.label is None,
        fields={field.name: _values_of(field, frame[column]) for column, field in form.fields.items()},
    )


def _values_of(field: Field, values: pl.Series) -> FieldColumn:
    if field.kind == "numeric":
        return FieldColumn(field, values.to_numpy())
    if field.kind == "multi":
        return FieldColumn.of(field, (list[Scalar](split_values(value)) for value in values.to_list()))
    return FieldColumn.of(field, values.to_list())


def _ids(column: pl.Series) -> IdArray:
    """The ids [n]; equal ids share one object to save memory."""
    ids = Ids()
    numbers = ids.encode(column)
    return np.array(ids.names(), np.object_)[numbers]
