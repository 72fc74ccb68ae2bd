"""From a trained model to its serving snapshot. The worker calls `encode_model` once for each version.

This is the part of serving that needs torch; api processes never import it.
"""

from service.serving.encode.inputs import Known, KnownFields
from service.serving.encode.model import encode_model, encode_snapshot

__all__ = ["Known", "KnownFields", "encode_model", "encode_snapshot"]
