"""The model behind LitServe: `workers` inference processes and as many HTTP processes, which is its default.

Requests are dictionaries, as in its documentation: pydantic models would be validated in one process and pickled for
another. `fast_queue` is what it recommends for more than 100 requests a second.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve

from benchmarks.serving.peers.arguments import HOST, parse_arguments
from benchmarks.serving.peers.tutorial import BATCH_SECONDS, MAX_BATCH, Predictor

Question = tuple[str, Sequence[str]]
Document = dict[str, object]


class ClickAPI(litserve.LitAPI):
    """One request after the other."""

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(**options)
        self.folder = folder

    def setup(self, device: str) -> None:
        """Load the model, in each inference process."""
        self.predictor = Predictor(self.folder)

    # Without a type LitServe parses the body as JSON and no more.
    def decode_request(self, request) -> Question:  # type: ignore[no-untyped-def]
        """The user and the items."""
        return request["user_id"], request["items"]

    def predict(self, question: Question) -> Document:
        """The answer."""
        user, items = question
        return self.predictor.document(user, items, self.predictor.predict(user, items))


class BatchingClickAPI(ClickAPI):
    """Requests that come together are scored together."""

    def predict(self, questions: Sequence[Question]) -> list[Document]:  # type: ignore[override] # so LitServe has it
        """The answers."""
        scores = self.predictor.predict_batch(questions)
        return [self.predictor.document(*question, s) for question, s in zip(questions, scores, strict=True)]


def main() -> None:
    """Serve until told to end."""
    arguments = parse_arguments()
    if arguments.batching:
        api = BatchingClickAPI(arguments.folder, max_batch_size=MAX_BATCH, batch_timeout=BATCH_SECONDS)
    else:
        api = ClickAPI(arguments.folder)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=arguments.workers, fast_queue=True)
    server.run(
        host=HOST, port=arguments.port, log_level="warning", access_log=False, generate_client_file=False
    )  # fmt: skip


if __name__ == "__main__":
    main()
