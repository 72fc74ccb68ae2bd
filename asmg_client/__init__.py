"""A client of asmg-service: predictions, events, the catalogue, periods and versions; sync and async.

    with Client("http://127.0.0.1:8000") as client:
        prediction = client.predict("ann", ["shoes", "hat"])

It needs httpx, and nothing of the service. `asmg_client.calls` and
`asmg_client.admin_calls` list the calls, `asmg_client.errors` the errors.
"""

from asmg_client.answers import Ingested, Model, Period, Prediction, Predictions
from asmg_client.async_client import AsyncClient
from asmg_client.async_event_buffer import AsyncEventBuffer
from asmg_client.client import Client
from asmg_client.errors import AsmgError, BufferFull, ConnectionFailed, EventConflict, ProblemError
from asmg_client.event_buffer import EventBuffer
from asmg_client.exchange import Pool, Timeouts
from asmg_client.pending import Counts
from asmg_client.questions import Click, Event, Impression, Interaction, Item, ItemInContext, Question, User, new_id
from asmg_client.retries import Retry

__all__ = [
    "AsmgError",
    "AsyncClient",
    "AsyncEventBuffer",
    "BufferFull",
    "Click",
    "Client",
    "ConnectionFailed",
    "Counts",
    "Event",
    "EventBuffer",
    "EventConflict",
    "Impression",
    "Ingested",
    "Interaction",
    "Item",
    "ItemInContext",
    "Model",
    "Period",
    "Pool",
    "Prediction",
    "Predictions",
    "ProblemError",
    "Question",
    "Retry",
    "Timeouts",
    "User",
    "new_id",
]
