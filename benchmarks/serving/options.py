"""What `asmg bench serve` measures, and the servers that it knows."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from asmg.features import MAX_FIELDS
from benchmarks.options import at_least, distinct, more_than_zero, some_of
from benchmarks.serving.fields import OF_EACH
from benchmarks.serving.requests import ServingSizes
from service.limits import MAX_ITEMS

Reads = tuple[bool, bool]
"""Whether a model reads statistics, and fields."""


@dataclass(frozen=True, order=True)
class Cell:
    """One combination that is measured."""

    n: int
    """Candidates of a request."""
    concurrency: int
    """Connections, with one request in flight on each."""
    workers: int
    """Processes that answer."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A server of the model."""

    name: str
    file: str | None = None
    """Its module in `benchmarks.serving.peers`; None for the real service."""
    package: str | None = None
    """Package that it needs beside those of the project."""
    batching: bool = False
    """Whether it scores requests together that arrive together."""
    before: bytes = b""
    after: bytes = b""
    """Bytes that it needs around the JSON document of a request."""
    statistics: bool = False
    """Whether its model reads statistics, as the one does that is served by default."""
    fields: bool = False
    """Whether its model reads fields too, and its requests have them."""

    @property
    def reads(self) -> Reads:
        """Whether its model reads statistics and fields. Servers with equal values give equal scores."""
        return self.statistics, self.fields

    @property
    def installed(self) -> bool:
        """Whether it can be started."""
        return self.package is None or find_spec(self.package) is not None


OURS, DEFAULT, FIELDS, PLAIN, NOOP = "asmg", "asmg-statistics", "asmg-fields", "plain", "noop"

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(name=OURS),
        Variant(name=DEFAULT, statistics=True),
        Variant(name=FIELDS, statistics=True, fields=True),
        Variant(name=PLAIN, file="plain"),
        Variant(name=NOOP, file="noop"),
        Variant(name="litserve", file="lit_serve", package="litserve"),
        Variant(name="litserve-batching", file="lit_serve", package="litserve", batching=True),
        Variant(name="bentoml", file="bento_ml", package="bentoml"),
        Variant(
            name="bentoml-batching",
            file="bento_ml",
            package="bentoml",
            batching=True,
            before=b'{"requests":[',
            after=b"]}",
        ),
        Variant(name="ray", file="ray_serve", package="ray"),
        Variant(name="ray-batching", file="ray_serve", package="ray", batching=True),
    )
}

PEER_CELL = Cell(50, 16, 1)
"""The only cell of the peers without `all_cells`: each of them takes many seconds to start."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What to measure; the help texts of `asmg bench serve` say what each option means."""

    sizes: ServingSizes = field(default_factory=ServingSizes)
    items: tuple[int, ...] = (1, 50, 500)
    concurrency: tuple[int, ...] = (1, 16, 64)
    workers: tuple[int, ...] = (1, 2)
    compare: bool = False
    variants: tuple[str, ...] | None = None
    fields: int | None = None
    all_cells: bool = False
    requests: int = 2_000
    seconds: float = 10.0
    rounds: int = 5
    warm_up: int = 300
    open_loop: float = 0.7
    rate: float | None = None
    during_swap: bool = False
    versions: int = 20
    fetch: bool = False
    deltas: int = 0
    rows: int = 10_000_000
    seed: int = 0
    report: Path | None = None

    def __post_init__(self) -> None:
        distinct(items=self.items, concurrency=self.concurrency, workers=self.workers)
        if max(self.items) > (most := min(MAX_ITEMS, self.sizes.items)):
            raise ValueError(f"items: expected at most {most} of a request; received {max(self.items)}")
        at_least(1, requests=self.requests, rounds=self.rounds, versions=self.versions)
        at_least(0, warm_up=self.warm_up, seed=self.seed, deltas=self.deltas)
        more_than_zero(seconds=self.seconds, rate=self.rate)
        if not 0 <= self.open_loop < 1:
            raise ValueError(f"open-loop: expected a share of at least 0 and below 1; received {self.open_loop}")
        if self.during_swap and not self.open_loop and self.rate is None:
            raise ValueError("open-loop: expected more than 0 with --during-swap; received 0")
        if self.during_swap:
            at_least(1_000, rows=self.rows)
        if self.fields is not None and not 1 <= self.fields <= MAX_FIELDS - 2 * OF_EACH:
            raise ValueError(f"fields: expected 1 to {MAX_FIELDS - 2 * OF_EACH}; received {self.fields}")
        if FIELDS in (self.variants or ()) and self.fields is None:
            raise ValueError(f"fields: expected their number for {FIELDS}; received none")
        some_of(tuple(VARIANTS), variants=self.variants)

    @property
    def names(self) -> tuple[str, ...]:
        """The variants to measure, the real service first."""
        if self.variants is not None:
            return tuple(name for name in VARIANTS if name in self.variants)
        if self.compare:
            return tuple(name for name in VARIANTS if name != FIELDS or self.fields is not None)
        return (OURS,) if self.fields is None else (DEFAULT, FIELDS)

    def cells(self, variant: Variant, workers: int) -> list[Cell]:
        """The cells of a variant with this number of workers."""
        cells = [Cell(n, concurrency, workers) for n in self.items for concurrency in self.concurrency]
        return cells if variant.package is None or self.all_cells else [cell for cell in cells if cell == PEER_CELL]

    def to_json(self) -> dict[str, object]:
        """The options as plain JSON values."""
        values = {name: value for name, value in vars(self).items() if name not in ("sizes", "compare", "report")}
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        sizes = {"users": self.sizes.users, "catalogue": self.sizes.items}
        return {**values, **lists, **sizes, "variants": list(self.names)}
