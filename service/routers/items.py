"""`PUT /items`."""

from typing import Annotated

from fastapi import APIRouter, Depends

from service.dependencies import JsonBody, Requires, Service, body_schema
from service.schemas import ItemsRequest, ItemsResponse
from service.use_cases.catalogue import put_items

router = APIRouter(tags=["catalogue"])


@router.put(
    "/items",
    dependencies=[Depends(Requires("ingest"))],
    openapi_extra=body_schema(ItemsRequest),
    summary="Add or replace items of the catalogue",
)
async def put_catalogue_items(
    service: Service, request: Annotated[ItemsRequest, Depends(JsonBody(ItemsRequest, gzip=True))]
) -> ItemsResponse:
    """Set the categories of each item, in place of those that it had; models learn them with the next period."""
    items = {item.item_id: item.categories or [] for item in request.items}
    changed = await service.writes.run(put_items(service.database, items))
    return ItemsResponse(items=len(items), changed=changed)
