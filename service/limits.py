"""Limits of what a client may send and of what the service keeps."""

from hashlib import sha256

MAX_ID_LENGTH = 256
"""Characters of a user, item, event, request or category id; an id has at least one."""

MIN_INTEGER_ID, MAX_INTEGER_ID = -(2**63), 2**63 - 1
"""Range of an id that comes as a JSON integer: what a signed integer of 64 bits holds. Larger ones come as text."""

MAX_FUTURE_SECONDS = 86_400
"""The most that `ASMG_FUTURE_TOLERANCE_SECONDS` can be. A click further ahead than this, as earlier development
versions stored, has no place in histories: it would keep later ones out until its time has come."""

MAX_CURSOR = 2**63 - 1
"""The largest `before` of a list."""

MAX_PAGE = 200
"""Rows of one page of a list."""

MAX_GZIP_MEMBERS = 1000
"""Members of a gzip body. Each costs a new decompressor, however short it is; `bgzip` makes 128 of 8 MiB."""

MAX_ITEMS = 1000
"""Candidate items of one prediction."""

MAX_BATCH = 256
"""Users of one batch of predictions."""

MAX_INTERACTIONS = 10_000
"""Interactions of one ingestion call."""

MAX_IMPRESSIONS = 10_000
"""Impressions of one call; each of at most `MAX_ITEMS` items."""

MAX_CLICKS = 10_000
"""Clicks of one call."""

MAX_POSITION = 2**31 - 1
"""Of an item in what a user was shown; positions begin with 0."""

MAX_CATALOGUE_ITEMS = 10_000
"""Items of one catalogue call."""

MAX_CATEGORIES = 16
"""Categories of one item."""

MAX_CONTEXT_BYTES = 8 * 1024
"""Of a context as JSON, and of the features of a user or an item: those of an interaction are read with each of it."""

MIN_WEIGHT, MAX_WEIGHT = 1e-6, 1000.0
"""Of an interaction. A smaller one would be nothing in single precision, and a larger one drown a whole period."""

MAX_USERS = 10_000
"""Users of one call that stores their features."""

MAX_HISTORY = 30
"""Most recent positives of a user that a model reads, newest first."""

MAX_REQUEST_HISTORY = 1000
"""Items a request may send as its history; the first `MAX_HISTORY` of them are used."""

MAX_HEAD_BYTES = 64 * 1024
"""Bytes of the head of one request: its line and its headers; also of what comes with the chunks of its body."""

MAX_PREFIX_LENGTH = 256
"""Characters of the path prefix that a proxy puts before the paths of the service."""

MAX_PIPELINED = 128
"""Requests of one connection that wait for the answer to an earlier one."""

MAX_BODY_BYTES = 8 * 1024 * 1024
"""Bytes of one request body, where none of the following applies."""

MAX_PREDICT_BYTES = 1024 * 1024
"""Of the body of one prediction; a request of a batch is none longer."""

MAX_BATCH_BYTES = 4 * 1024 * 1024
"""Of the body of one batch of predictions."""

MAX_JSON_PARTS = 100_000
"""Objects, arrays and members of objects in one body; 10,000 impressions have 80,003."""

MAX_BODIES_BYTES = 128 * 1024 * 1024
"""Of the bodies of all calls that are under way in an api process; those that are over it are refused with 503."""

MAX_WRITES = 64
"""Calls of an api process that store something and are under way at a time; more are refused with 503."""

MAX_STREAMS = 500
"""Streams of events (`/periods/{n}/events`) of an api process, and no more than half of its connections; more are
refused with 503.
"""

MAX_LOOKUPS = 4
"""Deletions of an api process, and looks at what is stored about an id, that are under way at a time."""

LOOKUP_SECONDS = 30.0
"""How long a caller waits for one of them."""

MAX_REASON_LENGTH = 1000
"""Characters of the reason an operator gives for a change."""

MAX_KEY_NAME_LENGTH = 100
"""Characters of the name of an API key."""

MAX_KEY_DAYS = 3650
"""Within so many days a key has to expire, if it expires at all."""

MIN_RATE, MAX_RATE = 0.001, 1_000_000
"""Requests a second that a key can be limited to."""

UNKNOWN_KEYS_RATE, UNKNOWN_KEYS_BURST = 100, 500
"""Keys a second, and at once, that an api process looks up in Postgres and does not find there."""

KEPT_FOR_TRAINING = 7
"""Periods that the method which looks back furthest, bu-7, learns from."""


def within_id_length(id_: str) -> str:
    """An id that was made of a client's ids: itself, or its SHA-256 in hex where it is too long for an id."""
    return id_ if len(id_) <= MAX_ID_LENGTH else sha256(id_.encode()).hexdigest()
