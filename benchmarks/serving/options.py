"""What `asmg bench serve` measures, and the servers that it knows."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from asmg.features import MAX_FIELDS
from benchmarks.serving.fields import OF_EACH
from benchmarks.serving.workload import ServingSizes
from service.limits import MAX_ITEMS

__all__ = ["DEFAULT", "FIELDS", "NOOP", "OURS", "PLAIN", "VARIANTS", "Cell", "Model", "ServeOptions", "Variant"]


Model = tuple[bool, bool]
"""Whether a model reads statistics, and fields."""


@dataclass(frozen=True, order=True)
class Cell:
    """One combination that is measured."""

    n: int
    """Items of a request."""
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
    """What has to be installed for it, beside what the project needs."""
    batching: bool = False
    """Whether it scores requests together that come together."""
    before: bytes = b""
    after: bytes = b""
    """What it wants around the document of a request."""
    statistics: bool = False
    """Whether its model reads statistics, as the one that is served by default; the others' does not."""
    fields: bool = False
    """Whether its model reads fields too, and its requests have them."""

    @property
    def model(self) -> Model:
        """Those of one model give the same scores."""
        return self.statistics, self.fields

    @property
    def installed(self) -> bool:
        """Whether it could be started."""
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
"""Where the servers of others are compared, unless everywhere: each of their cells takes a start of many seconds."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What `asmg bench serve` measures."""

    sizes: ServingSizes = field(default_factory=ServingSizes)
    items: tuple[int, ...] = (1, 50, 500)
    """Candidates of a request."""
    concurrency: tuple[int, ...] = (1, 16, 64)
    """Connections."""
    workers: tuple[int, ...] = (1, 2)
    """Processes that answer."""
    compare: bool = False
    """All variants, not the real service alone."""
    variants: tuple[str, ...] | None = None
    """These alone."""
    fields: int | None = None
    """Of the context of a request: the model that is served by default is measured with them and without."""
    all_cells: bool = False
    """Measure the servers of others in all cells too."""
    requests: int = 2_000
    """Of each closed loop, at most; an open one lasts three seconds."""
    seconds: float = 10.0
    """Of each cell and round, at most."""
    rounds: int = 5
    warm_up: int = 300
    """Requests before those that are measured."""
    open_loop: float = 0.7
    """Share of the capacity that an open loop asks for; 0 for no open loop."""
    rate: float | None = None
    """Requests a second that it asks for in place of a share."""
    during_swap: bool = False
    versions: int = 20
    fetch: bool = False
    """Whether the api processes have to fetch each version, as where the worker is on another host."""
    """Published while the service is asked."""
    rows: int = 10_000_000
    """Of both tables of these versions together."""
    seed: int = 0
    report: Path | None = None

    def __post_init__(self) -> None:
        for name in ("items", "concurrency", "workers"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values) or min(values) < 1:
                raise ValueError(f"{name}: expected distinct numbers of at least 1; received {_listed(values)}")
        if max(self.items) > min(MAX_ITEMS, self.sizes.items):
            most = min(MAX_ITEMS, self.sizes.items)
            raise ValueError(f"items: expected at most {most} of a request; received {max(self.items)}")
        for name in ("requests", "rounds", "versions"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected at least 1; received {value}")
        for name in ("warm_up", "seed"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name.replace('_', '-')}: expected at least 0; received {value}")
        for name in ("seconds", "rate"):
            if (limit := getattr(self, name)) is not None and not limit > 0:
                raise ValueError(f"{name}: expected more than 0; received {limit}")
        if not 0 <= self.open_loop < 1:
            raise ValueError(f"open-loop: expected a share of at least 0 and below 1; received {self.open_loop}")
        if self.during_swap:
            self._check_swap()
        if self.fields is not None and not 1 <= self.fields <= MAX_FIELDS - 2 * OF_EACH:
            raise ValueError(f"fields: expected 1 to {MAX_FIELDS - 2 * OF_EACH}; received {self.fields}")
        if FIELDS in (self.variants or ()) and self.fields is None:
            raise ValueError(f"fields: expected their number for {FIELDS}; received none")
        unknown = [name for name in self.variants or () if name not in VARIANTS]
        if unknown or self.variants == ():
            raise ValueError(f"variants: expected some of {', '.join(VARIANTS)}; received {_listed(unknown)}")

    def _check_swap(self) -> None:
        if not self.open_loop and self.rate is None:
            raise ValueError("open-loop: expected more than 0 with --during-swap; received 0")
        if self.rows < 1_000:
            raise ValueError(f"rows: expected at least 1000; received {self.rows}")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the variants to measure, the real service first."""
        if self.variants is not None:
            return tuple(name for name in VARIANTS if name in self.variants)
        if self.compare:
            return tuple(name for name in VARIANTS if name != FIELDS or self.fields is not None)
        return (OURS,) if self.fields is None else (DEFAULT, FIELDS)

    def cells(self, variant: Variant, workers: int) -> list[Cell]:
        """What is measured of a variant with so many workers."""
        cells = [Cell(n, concurrency, workers) for n in self.items for concurrency in self.concurrency]
        return cells if variant.package is None or self.all_cells else [cell for cell in cells if cell == PEER_CELL]

    def to_json(self) -> dict[str, object]:
        """As plain JSON values."""
        return {
            "users": self.sizes.users,
            "catalogue": self.sizes.items,
            "items": list(self.items),
            "concurrency": list(self.concurrency),
            "workers": list(self.workers),
            "variants": list(self.names),
            "fields": self.fields,
            "all_cells": self.all_cells,
            "requests": self.requests,
            "seconds": self.seconds,
            "rounds": self.rounds,
            "warm_up": self.warm_up,
            "open_loop": self.open_loop,
            "rate": self.rate,
            "during_swap": self.during_swap,
            "versions": self.versions,
            "fetch": self.fetch,
            "rows": self.rows,
            "seed": self.seed,
        }


def _listed(values: object) -> str:
    return ", ".join(str(value) for value in values) or "none" if isinstance(values, tuple | list) else str(values)
