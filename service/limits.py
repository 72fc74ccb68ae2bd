"""Limits on what a client may send and on what the service keeps."""

from hashlib import sha256

MAX_ID_LENGTH = 256
"""The most characters of a user, item, event, request or category id; an id has at least one."""

MIN_INTEGER_ID, MAX_INTEGER_ID = -(2**63), 2**63 - 1
"""Range of an id that is sent as a JSON integer, that of a signed 64-bit integer. Larger ones can be sent as text."""

MAX_FUTURE_SECONDS = 86_400
"""The largest `ASMG_FUTURE_TOLERANCE_SECONDS`. Earlier development versions stored clicks further ahead than this;
histories leave these out, because they would displace later clicks until their time has come."""

MAX_CURSOR = 2**63 - 1
"""The largest value of the parameter `before` of a list."""

MAX_PAGE = 200
"""The most rows of one page of a list."""

MAX_GZIP_MEMBERS = 1000
"""The most members of a gzip body. Each needs a new decompressor, however short it is; `bgzip` makes 128 members of
8 MiB."""

MAX_ITEMS = 1000
"""The most candidate items of one prediction."""

MAX_BATCH = 256
"""The most predictions of one batch."""

MAX_INTERACTIONS = 10_000
"""The most interactions of one call."""

MAX_IMPRESSIONS = 10_000
"""The most impressions of one call; each has at most `MAX_ITEMS` items."""

MAX_CLICKS = 10_000
"""The most clicks of one call."""

MAX_POSITION = 2**31 - 1
"""The largest position of an item in an impression; positions begin with 0."""

MAX_CATALOGUE_ITEMS = 10_000
"""The most items of one call that changes the catalogue."""

MAX_CATEGORIES = 16
"""The most categories of one item."""

MAX_CONTEXT_BYTES = 8 * 1024
"""The most bytes of a context as JSON, and of the features of a user or an item. Training reads them with every
interaction that has them."""

MIN_WEIGHT, MAX_WEIGHT = 1e-6, 1000.0
"""Range of the weight of an interaction. A smaller one would vanish in single precision, and a larger one would
outweigh a whole period."""

MAX_USERS = 10_000
"""The most users of one call that stores their features."""

MAX_HISTORY = 30
"""The most positives of a user that a model reads: the most recent ones, newest first."""

MAX_REQUEST_HISTORY = 1000
"""The most items of a history in a request; the first `MAX_HISTORY` of them are used."""

MAX_HEAD_BYTES = 64 * 1024
"""The most bytes of the head of a request (its line and its headers), and of the trailers of a body in chunks."""

MAX_PREFIX_LENGTH = 256
"""The most characters of the path prefix that a proxy puts before the paths of the service."""

MAX_PIPELINED = 128
"""The most requests of one connection that may wait for the answer to an earlier one."""

MAX_BODY_BYTES = 8 * 1024 * 1024
"""The most bytes of a request body, where none of the following limits applies."""

MAX_PREDICT_BYTES = 1024 * 1024
"""The most bytes of the body of one prediction, and of one request of a batch."""

MAX_BATCH_BYTES = 4 * 1024 * 1024
"""The most bytes of the body of one batch of predictions."""

MAX_JSON_PARTS = 100_000
"""The most objects, arrays and members of objects in one body; 10,000 impressions have 80,003."""

MAX_BODIES_BYTES = 128 * 1024 * 1024
"""The most bytes of the bodies of all calls that an api process is answering; calls above it are refused with 503."""

MAX_WRITES = 64
"""The most calls that store something which an api process runs at a time; more are refused with 503."""

MAX_STREAMS = 500
"""The most streams of events (`/periods/{n}/events`) of an api process, which may also use no more than half of its
connections; more are refused with 503."""

MAX_LOOKUPS = 4
"""The most calls that read all logs (deletions, and what is stored about an id) which an api process runs at a time."""

LOOKUP_SECONDS = 30.0
"""How long a caller waits for such a call."""

MAX_REASON_LENGTH = 1000
"""The most characters of the reason that an operator gives for a change."""

MAX_WEBHOOKS = 20
"""The most webhooks of an installation; each event is a row for each of them."""

MAX_URL_LENGTH = 2000
"""The most characters of the URL of a webhook."""

MAX_DELIVERIES = 10_000
"""The most deliveries of webhooks that are kept after they have ended."""

MAX_KEY_NAME_LENGTH = 100
"""The most characters of the name of an API key."""

MAX_KEY_DAYS = 3650
"""The most days until an API key expires, if it expires at all."""

MIN_RATE, MAX_RATE = 0.001, 1_000_000
"""Range of the rate limit of an API key, in requests a second."""

UNKNOWN_KEYS_RATE, UNKNOWN_KEYS_BURST = 100, 500
"""How many unknown keys an api process looks up in Postgres: a second, and at once."""

KEPT_FOR_TRAINING = 7
"""Number of periods that bu-7 learns from, the method that looks back furthest."""

KEPT_BREAKDOWNS = 200
"""Number of periods whose scores are kept by parts of their logs; each takes 2 to 8 kB. The console's pages go back as
far."""


def within_id_length(id_: str) -> str:
    """The id, or its SHA-256 in hex where it is too long; for ids that are composed of a client's ids."""
    return id_ if len(id_) <= MAX_ID_LENGTH else sha256(id_.encode()).hexdigest()
