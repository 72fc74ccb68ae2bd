"""The documents of items and users: `PUT /items`, `PUT /users`, and the deletion of either."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from service.http.schemas.types import FeaturesOfItem, FeaturesOfUser, Id, StrictModel, Timestamp
from service.limits import MAX_CATALOGUE_ITEMS, MAX_CATEGORIES, MAX_USERS

__all__ = [
    "DeletionResponse",
    "ItemDocument",
    "ItemsRequest",
    "ItemsResponse",
    "UserFeatures",
    "UsersRequest",
    "UsersResponse",
]


class ItemDocument(StrictModel):
    """An item of the catalogue with its categories."""

    item_id: Id
    categories: Annotated[list[Id], Field(max_length=MAX_CATEGORIES, fail_fast=True)] | None = Field(
        description="Null means none, like an empty list."
    )
    features: FeaturesOfItem | None = Field(
        None, description="Features of the item, which replace its earlier ones; those stay if this is absent."
    )
    timestamp: Timestamp | None = Field(None, description="Time from which the features are valid; now if absent.")


class ItemsRequest(StrictModel):
    """Items to add or to replace. If an item is given twice, the last one counts."""

    items: Annotated[list[ItemDocument], Field(min_length=1, max_length=MAX_CATALOGUE_ITEMS)]


class ItemsResponse(BaseModel):
    """Sent after the commit."""

    items: int = Field(description="Distinct items received.")
    changed: int = Field(description="Items that are new, or had other categories or features before.")


class UserFeatures(StrictModel):
    """The features of a user."""

    user_id: Id
    features: FeaturesOfUser | None = Field(
        description="Features of the user, which replace the earlier ones; null for none."
    )
    timestamp: Timestamp | None = Field(None, description="Time from which they are valid; now if absent.")


class UsersRequest(StrictModel):
    """Features of users. If a user is given twice for one time, the last ones count."""

    users: Annotated[list[UserFeatures], Field(min_length=1, max_length=MAX_USERS)]


class UsersResponse(BaseModel):
    """Sent after the commit."""

    users: int = Field(description="Distinct users received.")
    changed: int = Field(description="Users who had other features at that time.")


class DeletionResponse(BaseModel):
    """How far the deletion of all that is stored about an id has come."""

    deletion: str = Field(description="Name of the deletion, by which the audit log refers to it.")
    status: Literal["done", "pending"] = Field(
        description="`pending`: it is noted and goes on by itself; send the request again to see whether it is done."
    )
    removed: dict[str, int] = Field(description="Rows removed so far, by what they were.")
