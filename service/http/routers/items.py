"""`/items`: change the catalogue, show what is stored about an item, delete it."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from service.http.app_state import State
from service.http.json_body import JsonBody, body_schema
from service.http.keys import Caller, Requires
from service.http.routers.users import BEFORE, ID, PERIODS, delete, exact_id, feature_versions
from service.http.schemas import DeletionResponse, ItemsRequest, ItemsResponse, Text
from service.use_cases.catalogue import put_items
from service.use_cases.traces import ItemDocument, get_item

router = APIRouter(tags=["catalogue"])


@router.put(
    "/items",
    dependencies=[Depends(Requires("ingest"))],
    openapi_extra=body_schema(ItemsRequest),
    summary="Add or replace items of the catalogue",
)
async def put_catalogue_items(
    state: State, request: Annotated[ItemsRequest, Depends(JsonBody(ItemsRequest, gzip=True))]
) -> ItemsResponse:
    """Set the categories of each item, in place of those that it had, and its features; models learn them with the next
    period.
    """
    items = {item.item_id: item.categories or [] for item in request.items}
    features = feature_versions(state, "item", [(i.item_id, i.features, i.timestamp) for i in request.items])
    changed = await state.writes.run(put_items(state.database, items, features))
    return ItemsResponse(items=len(items), changed=changed)


@router.get(
    "/items/{item_id:path}",
    dependencies=[Depends(exact_id)],
    tags=["stored data"],
    summary="What is stored about an item",
)
async def get_one_item(
    state: State,
    _: Annotated[Caller, Depends(Requires("admin"))],
    item_id: Annotated[Text, ID],
    limit: Annotated[int, PERIODS] = 50,
    before: Annotated[int | None, BEFORE] = None,
) -> ItemDocument:
    """Its categories, counts by period, and whether models know it; it takes a pass over all logs."""
    looking = get_item(state.database, state.serving.current(), item_id, limit=limit, before=before)
    return await state.lookups.run(looking)


@router.delete(
    "/items/{item_id:path}",
    dependencies=[Depends(exact_id)],
    responses={202: {"model": DeletionResponse, "description": "It is noted, and will be carried out"}},
    tags=["stored data"],
    summary="Delete all that is stored about an item",
)
async def delete_item(
    state: State,
    caller: Annotated[Caller, Depends(Requires("admin"))],
    item_id: Annotated[Text, ID],
    response: Response,
) -> DeletionResponse:
    """Remove the item from the catalogue, logs, what users were shown, their histories and the table of ids; the next
    model does not know it. Asking again changes nothing. What is sent about the id afterwards is about another item.
    """
    return await delete(state, caller, "item", item_id, response)
