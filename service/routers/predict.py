"""`POST /predict`."""

from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Depends, Response
from pydantic_core import to_json

from service.dependencies import JsonBody, Requires, Service, body_schema
from service.schemas import PredictRequest, PredictResponse
from service.use_cases.predict import predict

router = APIRouter(tags=["predict"])


@router.post(
    "/predict",
    dependencies=[Depends(Requires("predict"))],
    response_model=PredictResponse,
    openapi_extra=body_schema(PredictRequest),
    summary="Click probabilities of items for a user",
)
async def post_predict(
    service: Service, request: Annotated[PredictRequest, Depends(JsonBody(PredictRequest))]
) -> Response:
    """Score the items for the user with the version served now; unknown users and items get a sensible score too."""
    result = await predict(
        service.serving,
        service.histories,
        user_id=request.user_id,
        items=request.items,
        history=request.history,
    )
    service.metrics.predicted_items.inc(len(request.items))
    # Serialised here: the framework would validate each of up to 1,000 scores first.
    document = {
        "model_version": result.model_version,
        "period": result.period,
        "scores": result.prediction.scores,
        "cold_user": result.prediction.cold_user,
        "cold_items": result.prediction.cold_items,
        "request_id": request.request_id or uuid4().hex,
    }
    return Response(to_json(document), media_type="application/json")
