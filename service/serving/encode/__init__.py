"""From a trained model to its serving snapshot: the worker writes a base or a delta for each version.

This is the part of serving that needs torch; api processes never import it.
"""

from service.serving.encode.inputs import ItemCounts, ItemFields, Known, KnownFields, Table, TrainedModel
from service.serving.encode.model import encode_base, encode_delta

__all__ = [
    "ItemCounts",
    "ItemFields",
    "Known",
    "KnownFields",
    "Table",
    "TrainedModel",
    "encode_base",
    "encode_delta",
]
