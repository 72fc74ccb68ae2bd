"""The model behind Ray Serve: `workers` replicas behind one HTTP proxy, on a Ray of its own."""

import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

# Ray reads these when it is imported. The first is what its documentation recommends for throughput; without a token
# it would write one into the home folder.
os.environ.setdefault("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request

from benchmarks.serving.peers.arguments import HOST, parse_arguments
from benchmarks.serving.peers.tutorial import BATCH_SECONDS, MAX_BATCH, Predictor

Document = dict[str, object]

MAX_ONGOING = 100
"""Requests that a replica may have at a time; the default of 5 would keep the load out."""
OBJECT_STORE_BYTES = 80 * 1024 * 1024
SOCKET_PATH_BYTES = 107
LONGEST_SOCKET = "/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
class Click:
    """One request after the other."""

    def __init__(self, folder: str) -> None:
        self.predictor = Predictor(Path(folder))

    async def __call__(self, request: Request) -> Document:
        """The answer."""
        question = await request.json()
        user, items = question["user_id"], question["items"]
        return self.predictor.document(user, items, self.predictor.predict(user, items))


@serve.deployment(max_ongoing_requests=MAX_ONGOING)
class BatchingClick:
    """Requests that come together are scored together."""

    def __init__(self, folder: str) -> None:
        self.predictor = Predictor(Path(folder))

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_SECONDS)
    async def score(self, questions: list[Any]) -> list[list[float]]:
        """The scores of each question."""
        return self.predictor.predict_batch([(question["user_id"], question["items"]) for question in questions])

    async def __call__(self, request: Request) -> Document:
        """The answer."""
        question = await request.json()
        scores = await self.score(question)
        return self.predictor.document(question["user_id"], question["items"], scores)


def main() -> None:
    """Serve until told to end."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    place = str(arguments.folder / "ray")
    short = len(os.fsencode(place + LONGEST_SOCKET)) <= SOCKET_PATH_BYTES
    ray.init(
        num_cpus=arguments.workers + 1,
        include_dashboard=False,
        logging_level="WARNING",
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _node_ip_address=HOST,
        _temp_dir=place if short else None,
    )
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(
        proxy_location="HeadOnly", http_options=HTTPOptions(host=HOST, port=arguments.port), logging_config=quiet
    )  # fmt: skip
    deployment: Any = BatchingClick if arguments.batching else Click
    application = deployment.options(num_replicas=arguments.workers, ray_actor_options={"num_cpus": 1})
    try:
        serve.run(application.bind(str(arguments.folder)), logging_config=quiet, blocking=True)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
