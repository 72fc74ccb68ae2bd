"""The settings of one installation, read from the environment (`ASMG_…`) and passed in, never imported as a global."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from asmg.features import DEFAULT, Schema, SchemaError
from asmg.layout import DIM, HIDDEN
from asmg.log_format import FUTURE_TOLERANCE_SECONDS
from service.addresses import (
    MAX_PORT,
    check_artifacts_url,
    check_redis_url,
    checked_postgres_url,
    parse_sentinel_url,
)
from service.errors import ConfigurationError
from service.export_settings import ExportSettings
from service.guardrail_settings import GuardrailSettings
from service.limits import (
    KEPT_FOR_TRAINING,
    MAX_FUTURE_SECONDS,
    MAX_HISTORY,
    MAX_PREFIX_LENGTH,
    MAX_RATE,
    MIN_RATE,
)
from service.notification_settings import NotificationSettings, Several, checked_networks, split_list
from service.telemetry.settings import TelemetrySettings

__all__ = ["Settings", "checked_prefix", "sqlalchemy_dsn"]

ASYNCPG_SCHEME = "postgresql+asyncpg://"
POSTGRES_SCHEMES = ("postgresql://", "postgres://", ASYNCPG_SCHEME)
SENTINEL_SCHEMES = ("redis+sentinel://", "rediss+sentinel://")
REDIS_SCHEMES = ("redis://", "rediss://", "unix://", *SENTINEL_SCHEMES)

ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
MAX_LAYERS, MAX_WIDTH = 8, 1024
"""The most hidden layers of a base model, and the most units of one. Larger ones would make a prediction slower than
all the rest of a request."""

MIN_REFUSING_LEAD = 0.2
"""The shortest swap lead, in seconds, of processes that refuse to be behind. They look for news eight times in it."""

DEFAULT_PORTS = {"http": "80", "https": "443"}
PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")


def sqlalchemy_dsn(dsn: str) -> str:
    """The DSN for SQLAlchemy, with asyncpg as the driver.

    Raises:
        ValueError: the scheme is not `postgresql://`, `postgres://` or `postgresql+asyncpg://`, or the rest of the URL
            is ambiguous.
    """
    for scheme in POSTGRES_SCHEMES:
        if dsn.startswith(scheme):
            return ASYNCPG_SCHEME + checked_postgres_url(dsn).partition("://")[2]
    raise ValueError(f"expected a DSN that starts with {' or '.join(POSTGRES_SCHEMES)}")


def checked_prefix(path: str) -> str:
    """A path prefix without the slash at its end; empty for `/`.

    Raises:
        ValueError: the path is no prefix. A prefix has one or more segments of a `/` and letters, digits, `.`, `_`, `~`
            or `-`, none of which is `.` or `..`, and at most 256 characters.
    """
    path = path.rstrip("/") if not path.endswith("//") else path
    if path and (
        len(path) > MAX_PREFIX_LENGTH or not PREFIX.fullmatch(path) or not {".", ".."}.isdisjoint(path.split("/"))
    ):
        raise ValueError(
            f"expected a path of at most {MAX_PREFIX_LENGTH} characters such as /recommender/v1, of letters, digits, "
            ". _ ~ and -"
        )
    return path


class Settings(ExportSettings, GuardrailSettings, NotificationSettings, TelemetrySettings):
    """All settings; their units are in the names."""

    model_config = TelemetrySettings.model_config  # the other parts have none of their own

    data_dir: Path = Field(Path("~/.local/share/asmg"), validate_default=True)
    """Folder of the embedded servers, of the files of the serving snapshots, and of the journal of deletions."""
    postgres_dsn: str | None = Field(None, repr=False)
    """Postgres of the installation; unset together with `redis_url` for the embedded servers."""
    redis_url: str | None = Field(None, repr=False)
    """Redis of the installation: `redis://`, `rediss://`, `unix://`; its Sentinels: `redis+sentinel://`, `rediss+…`."""
    artifacts_url: str | None = None
    """Object store for snapshots and training states: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`,
    `az://CONTAINER/PREFIX` or `file:///FOLDER`; unset for Postgres. Credentials are in the variables of the provider's
    own tools."""
    artifacts_to_postgres: bool = False
    """Whether new artifacts go to Postgres although `artifacts_url` is set, from which the older ones are read."""
    start_without_redis: bool = False
    """Whether `asmg serve` and `asmg worker` start although Redis does not answer. When Redis is lost later, they go on
    in any case."""
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    api_workers: int = Field(1, ge=1)
    """Number of api processes."""
    max_connections: int = Field(1000, ge=1)
    """Open connections of one api process; more are answered with 503 and closed."""
    head_deadline_seconds: float = Field(10.0, gt=0)
    """How long a client may take for the head of a request, from the connection or the first byte of the head on."""
    body_deadline_seconds: float = Field(30.0, gt=0)
    """How long a client may take for the body of a request, and how long it may read nothing of an answer."""
    keep_alive_seconds: int = Field(75, ge=1)
    """How long a connection may be idle between two requests. It should be longer than the idle time of a load balancer
    in front (60 s in many cases), which else sends a request on a connection that is being closed."""
    tls_cert: Path | None = None
    """Certificate chain in PEM, for HTTPS without a proxy; together with `tls_key`."""
    tls_key: Path | None = None
    """Private key of the certificate in PEM, not encrypted."""
    root_path: str = ""
    """Path prefix under which clients see the service behind a proxy, such as `/recommender`. The proxy may keep it or
    remove it."""
    trusted_proxies: Several = ()
    """Addresses and networks (CIDR) of the proxies whose `X-Forwarded-Prefix` is believed; nobody's by default."""
    cors_origins: Several = ()
    """Origins (`https://shop.example.com`) whose pages may call the API from a browser, or `*` for all; none by
    default."""
    prior_ctr: float | None = Field(None, gt=0, lt=1)
    """The click rate of the traffic, where it is known. Version 0 answers it (0.5 where it is not known), and what is
    learned from sampled negatives is served as if they were as many as it says."""
    updater: str = "asmg-gru-multi"
    """Name of the update method, see `asmg.updaters.UPDATERS`."""
    embedding_dim: int = Field(DIM, ge=1, le=256)
    """Width of every embedding."""
    hidden_layers: Annotated[tuple[int, ...], NoDecode] = HIDDEN
    """Widths of the hidden layers of the base model, at most 8 of at most 1024; separated by commas."""
    dot_product: bool = True
    """Whether the base model multiplies user and item, and history and item, beside its layers."""
    statistics: bool = True
    """Whether the base model reads statistics of user, item and pair (`asmg.statistics`)."""
    features: Path | None = None
    """File of the schema of the fields (TOML, `asmg.features`); unset for hour and weekday alone."""
    device: str = "auto"
    """Where updates compute: `cpu`, `cuda`, or `auto` for a GPU where there is one."""
    history_length: int = Field(MAX_HISTORY, ge=1, le=MAX_HISTORY)
    """Most recent positives of a user that a model reads."""
    history_cache_seconds: float = Field(10.0, ge=0)
    """How long an api process keeps a user's history in memory at most. A click that the process has stored itself is
    in it at once, one of another process as soon as its notice comes through Redis, a moment later."""
    history_deadline_seconds: float = Field(0.75, gt=0)
    """How long a prediction waits for the user's history; it is then made without."""
    connection_seconds: float = Field(3600.0, gt=0)
    """Age at which a connection to Postgres is replaced, because the memory that the server keeps for it grows."""
    store_deadline_seconds: float = Field(5.0, gt=0)
    """How long a call that stores something waits for Postgres; it is then refused, and the client may try again."""
    future_tolerance_seconds: float = Field(FUTURE_TOLERANCE_SECONDS, ge=0, le=MAX_FUTURE_SECONDS)
    """How far the time of an event may be ahead of the clock of the process that stores it; others are refused. It
    holds for `asmg import` too; `asmg experiment prepare`, which has no settings, allows five minutes."""
    attribution_window_seconds: float = Field(1800.0, ge=0, le=30 * 86_400)
    """How long after an impression a click on it counts. The impression becomes interactions after this time."""
    negatives_per_positive: int = Field(0, ge=0, le=100)
    """Negatives that are sampled for each positive of a period whose log has only positives; 0 for none."""
    impression_deadline_seconds: float = Field(0.1, gt=0)
    """How long a prediction waits for its impression to be stored; the answer then says that it was not logged."""
    rate_limit: float = 0.0
    """Requests a second that a key without a limit of its own may make, to all api processes together; 0 for any
    number."""
    rate_burst_seconds: float = Field(1.0, gt=0, le=3600)
    """Size of a burst: a key may make as many requests at once as its limit allows in this time, and at least one."""
    swap_lead_seconds: float = Field(0.5, ge=0)
    """Shortest time between the publication of a version and the moment at which all api processes switch to it; half
    of it is the shortest time between the choice of that moment and the moment."""
    swap_wait_seconds: float = Field(10.0, ge=0)
    """How long a published version waits until every api process that runs has loaded it."""
    swap_quorum: float = Field(0.5, gt=0, le=1)
    """Share of the api processes that must have loaded a version that has waited for `swap_wait_seconds`."""
    swap_laggards: Literal["serve", "refuse"] = "serve"
    """What an api process does that may be behind the others, since it has not loaded a version or cannot reach
    Postgres: `serve` the version it has, or `refuse` to predict."""
    api_lease_seconds: float = Field(10.0, ge=1)
    """How long an api process counts as running after it was last seen in Postgres; it is seen five times as often."""
    swap_poll_seconds: float = Field(0.25, gt=0)
    """How often an api process looks for a new version, in case a notice did not reach it."""
    snapshot_check_seconds: float = Field(60.0, gt=0)
    """How often an api process compares the model in memory and its file with their digest."""
    worker_poll_seconds: float = Field(1.0, gt=0)
    """How often the worker looks for a sealed period."""
    worker_stall_seconds: float = Field(300.0, gt=0)
    """Age of its last progress at which a worker is not healthy (`asmg worker --check`). Training reports progress all
    the time, but reading or writing a very large period is one step."""
    rank_timeout_seconds: float = Field(300.0, gt=0)
    """How long a training process waits for the others; longer than compiling machine code at a first start."""
    max_attempts: int = Field(3, ge=1)
    """Updates of one period that may fail before it is quarantined."""
    keep_versions: int = Field(50, ge=2)
    """Newest model versions whose serving snapshot is kept, so that one can roll back to them."""
    keep_states: int = Field(5, ge=1)
    """Newest model versions whose training state is kept, so that a rollback can excise what came after them."""
    keep_logs: int = Field(30, ge=0)
    """Newest learned periods whose log is kept, beside the seven that the method which looks back furthest learns from.
    Duplicates of an event are recognised as long as its log is kept."""
    evict_after_periods: int | None = None
    """Number of consecutive periods without an event after which a user or an item loses its row; None for never."""
    deletion_journal: Path | None = None
    """File to which every deletion of a user or an item is appended; by default `deletions.jsonl` in `data_dir`. It
    must be kept when the database is restored or lost."""
    seed: int = 0
    """Seed of all random choices of the updates."""

    @field_validator("data_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator(
        *("postgres_dsn", "redis_url", "artifacts_url", "tls_cert", "tls_key", "features", "evict_after_periods"),
        *("deletion_journal", "export_url"),
        mode="before",
    )
    @classmethod
    def _unset_when_empty(cls, value: object) -> object:
        # Compose files pass `ASMG_REDIS_URL=${ASMG_REDIS_URL}` through; there an empty value means unset.
        return None if value == "" else value

    @field_validator("postgres_dsn")
    @classmethod
    def _use_asyncpg(cls, value: str | None) -> str | None:
        return None if value is None else sqlalchemy_dsn(value)

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str | None) -> str | None:
        if value is not None:
            if not value.startswith(REDIS_SCHEMES):
                raise ValueError(f"expected a URL that starts with {' or '.join(REDIS_SCHEMES)}")
            (parse_sentinel_url if value.startswith(SENTINEL_SCHEMES) else check_redis_url)(value)
        return value

    @field_validator("artifacts_url", "export_url")
    @classmethod
    def _check_artifacts_url(cls, value: str | None) -> str | None:
        if value is not None:
            check_artifacts_url(value)
        return value

    @field_validator("trusted_proxies", "cors_origins", "shadow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return split_list(value)

    @field_validator("hidden_layers", mode="before")
    @classmethod
    def _split_widths(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("hidden_layers")
    @classmethod
    def _check_widths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not 1 <= len(value) <= MAX_LAYERS or not all(1 <= width <= MAX_WIDTH for width in value):
            raise ValueError(f"expected 1 to {MAX_LAYERS} widths from 1 to {MAX_WIDTH}; received {value}")
        return value

    @field_validator("root_path")
    @classmethod
    def _check_root_path(cls, value: str) -> str:
        return checked_prefix(value)

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return checked_networks(value)

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return value if value == ("*",) else tuple(_origin(given) for given in value)

    @field_validator("rate_limit")
    @classmethod
    def _check_rate(cls, value: float) -> float:
        if value and not MIN_RATE <= value <= MAX_RATE:
            raise ValueError(f"expected {MIN_RATE} to {MAX_RATE} requests a second, or 0 for any number")
        return value

    @model_validator(mode="after")
    def _check_certificate_and_key(self) -> "Settings":
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("expected both ASMG_TLS_CERT and ASMG_TLS_KEY, or neither; received one")
        return self

    @model_validator(mode="after")
    def _check_refusal(self) -> "Settings":
        if self.swap_laggards == "refuse" and self.swap_lead_seconds < MIN_REFUSING_LEAD:
            raise ValueError(
                f"expected ASMG_SWAP_LEAD_SECONDS of at least {MIN_REFUSING_LEAD} with ASMG_SWAP_LAGGARDS=refuse, "
                f"since a process answers for half of it between two looks; received {self.swap_lead_seconds}"
            )
        return self

    @field_validator("evict_after_periods")
    @classmethod
    def _check_eviction(cls, value: int | None) -> int | None:
        if value is not None and value < KEPT_FOR_TRAINING:
            raise ValueError(
                f"expected at least {KEPT_FOR_TRAINING}, the periods that the method which looks back furthest learns "
                f"from, or none; received {value}"
            )
        return value

    @model_validator(mode="after")
    def _check_servers(self) -> "Settings":
        if (self.postgres_dsn is None) != (self.redis_url is None):
            given, missing = (
                ("redis_url", "postgres_dsn") if self.postgres_dsn is None else ("postgres_dsn", "redis_url")
            )
            raise ValueError(
                f"expected both ASMG_POSTGRES_DSN and ASMG_REDIS_URL, or neither for the embedded servers; "
                f"received ASMG_{given.upper()} without ASMG_{missing.upper()}"
            )
        return self

    @model_validator(mode="after")
    def _check_artifacts(self) -> "Settings":
        if self.artifacts_to_postgres and self.artifacts_url is None:
            raise ValueError("expected ASMG_ARTIFACTS_URL with ASMG_ARTIFACTS_TO_POSTGRES; received none")
        return self

    @property
    def serving_dir(self) -> Path:
        """Folder of the snapshot files, which all processes of a host share."""
        return self.data_dir / "serving"

    @property
    def state_dir(self) -> Path:
        """Folder of the training states that the worker of this host reads."""
        return self.data_dir / "state"

    @property
    def worker_dir(self) -> Path:
        """Folder of the workers' heartbeats."""
        return self.data_dir / "workers"

    @property
    def journal(self) -> Path:
        """Path of the deletion journal: `deletion_journal` or its default."""
        return self.data_dir / "deletions.jsonl" if self.deletion_journal is None else self.deletion_journal.absolute()

    def read_features(self) -> Schema:
        """The schema in the file `features`; the default one where there is none.

        Raises:
            ConfigurationError: the file cannot be read or holds no schema, or nothing would standardise its numbers.
        """
        if self.features is None:
            return DEFAULT
        try:
            schema = Schema.read(self.features)
        except OSError as error:
            raise ConfigurationError(f"ASMG_FEATURES={self.features}: {error.strerror or error}") from None
        except SchemaError as error:
            first, *more = error.faults
            rest = f"; {len(more)} more: `asmg features check {self.features}` lists all" if more else ""
            raise ConfigurationError(f"ASMG_FEATURES={first}{rest}") from None
        if not self.statistics and (bare := [field.name for field in schema.fields if not field.by_table]):
            raise ConfigurationError(
                f"ASMG_FEATURES={self.features}: fields.{bare[0]}.enter: expected buckets, as without ASMG_STATISTICS "
                "nothing standardises numbers; received a field that enters as a number"
            )
        return schema

    @property
    def attribution_window(self) -> timedelta:
        """`attribution_window_seconds` as a timedelta."""
        return timedelta(seconds=self.attribution_window_seconds)

    @property
    def embedded(self) -> bool:
        """Whether the service starts its own Postgres and Redis under `data_dir`."""
        return self.postgres_dsn is None


def _origin(given: str) -> str:
    """The origin as browsers write it: in lower case, without the default port of its scheme."""
    found = ORIGIN.fullmatch(given.lower())
    if found is None or (found["port"] is not None and not 0 < int(found["port"]) <= MAX_PORT):
        raise ValueError(
            f"expected origins, SCHEME://HOST or SCHEME://HOST:PORT without a path, or * alone; received {given!r}"
        )
    is_default = found["port"] is not None and found["port"] == DEFAULT_PORTS.get(found["scheme"])
    return found[0].removesuffix(f":{found['port']}") if is_default else found[0]
