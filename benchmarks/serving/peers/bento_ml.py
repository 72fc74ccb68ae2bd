"""The model behind BentoML: `workers` processes of one service.

Its methods are `async`, so that they run in the event loop. Plain methods run in a thread, and a request cost 900 µs of
CPU instead of 700.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import bentoml
from annotated_types import MaxLen, MinLen

from benchmarks.serving.peers.arguments import HOST, parse_arguments
from benchmarks.serving.peers.tutorial import (
    MAX_BATCH,
    Predictor,
    PredictRequest,
    PredictResponse,
)
from service.limits import MAX_ITEMS

FOLDER = "BENCH_FOLDER"
WORKERS = "BENCH_WORKERS"

CONFIG: Any = {"workers": int(os.environ.get(WORKERS, "1")), "logging": {"access": {"enabled": False}}}


@bentoml.service(**CONFIG)
class Click:
    """One request after the other."""

    def __init__(self) -> None:
        self.predictor = Predictor(Path(os.environ[FOLDER]))

    @bentoml.api
    async def predict(self, user_id: str, items: Annotated[list[str], MinLen(1), MaxLen(MAX_ITEMS)]) -> PredictResponse:
        """The answer."""
        return PredictResponse(**self.predictor.document(user_id, items, self.predictor.predict(user_id, items)))


@bentoml.service(**CONFIG)
class BatchingClick:
    """Requests that come together are scored together.

    BentoML batches lists: a request is a list of one question, its answer a list of one document. BentoML adapts by
    itself how long it waits for more; `max_latency_ms` is not that window, but drops requests that take longer.
    """

    def __init__(self) -> None:
        self.predictor = Predictor(Path(os.environ[FOLDER]))

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH)
    async def predict(self, requests: list[PredictRequest]) -> list[PredictResponse]:
        """The answers."""
        questions = [(request.user_id, request.items) for request in requests]
        scores = self.predictor.predict_batch(questions)
        documents = (self.predictor.document(*question, s) for question, s in zip(questions, scores, strict=True))
        return [PredictResponse(**document) for document in documents]


def main() -> None:
    """Serve until told to end."""
    arguments = parse_arguments()
    environment = {
        **os.environ,
        FOLDER: str(arguments.folder),
        WORKERS: str(arguments.workers),
        "BENTOML_HOME": str(arguments.folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    service = f"{__package__}.bento_ml:{'BatchingClick' if arguments.batching else 'Click'}"
    command = [sys.executable, "-m", "bentoml", "serve", service, "--host", HOST, "--port", str(arguments.port)]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
