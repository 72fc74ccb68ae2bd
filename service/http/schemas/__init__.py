"""The request and response documents of the HTTP API, by resource.

Routers declare them, `service.http.bodies` parses requests with them, and the OpenAPI document describes them. Requests
are strict: unknown fields, numbers in quotes and booleans in place of numbers are errors.

The documents about periods and models that `GET` returns are not here: they are what the use cases return
(`service.use_cases.status`).
"""

from service.http.schemas.catalogue import (
    DeletionResponse,
    ItemDocument,
    ItemsRequest,
    ItemsResponse,
    UserFeatures,
    UsersRequest,
    UsersResponse,
)
from service.http.schemas.events import (
    ClickEvent,
    ClicksRequest,
    ImpressionEvent,
    ImpressionsRequest,
    IngestResponse,
    InteractionEvent,
    InteractionsRequest,
    parse_positions,
    refuse_repetition,
)
from service.http.schemas.keys import KeyCreated, KeyDocument, KeyLimit, KeyList, KeyReason, KeyRequest
from service.http.schemas.models import CanaryRequest, PinRequest, PinResponse, RollbackRequest, RollbackResponse
from service.http.schemas.operations import Health, OverviewResponse, Readiness
from service.http.schemas.periods import CloseRequest, CloseResponse, PeriodReason
from service.http.schemas.predict import (
    BatchedRequest,
    BatchPrediction,
    BatchRequest,
    BatchResponse,
    PredictRequest,
    PredictResponse,
    parse_log,
)
from service.http.schemas.problems import Problem, ProblemField
from service.http.schemas.types import Id, ItemInContext, Text, parse_label, parse_timestamp

__all__ = [
    "BatchPrediction",
    "BatchRequest",
    "BatchResponse",
    "BatchedRequest",
    "CanaryRequest",
    "ClickEvent",
    "ClicksRequest",
    "CloseRequest",
    "CloseResponse",
    "DeletionResponse",
    "Health",
    "Id",
    "ImpressionEvent",
    "ImpressionsRequest",
    "IngestResponse",
    "InteractionEvent",
    "InteractionsRequest",
    "ItemDocument",
    "ItemInContext",
    "ItemsRequest",
    "ItemsResponse",
    "KeyCreated",
    "KeyDocument",
    "KeyLimit",
    "KeyList",
    "KeyReason",
    "KeyRequest",
    "OverviewResponse",
    "PeriodReason",
    "PinRequest",
    "PinResponse",
    "PredictRequest",
    "PredictResponse",
    "Problem",
    "ProblemField",
    "Readiness",
    "RollbackRequest",
    "RollbackResponse",
    "Text",
    "UserFeatures",
    "UsersRequest",
    "UsersResponse",
    "parse_label",
    "parse_log",
    "parse_positions",
    "parse_timestamp",
    "refuse_repetition",
]
