"""Plain FastAPI and eager torch, as a good tutorial would write it, on uvicorn."""

import os
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from benchmarks.serving.peers.arguments import HOST, parse_arguments
from benchmarks.serving.peers.tutorial import Predictor, PredictRequest, PredictResponse

FOLDER = "BENCH_FOLDER"


def create_app() -> FastAPI:
    """The application of one worker."""
    predictor = Predictor(Path(os.environ[FOLDER]))
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: PredictRequest) -> PredictResponse:
        scores = predictor.predict(request.user_id, request.items)
        return PredictResponse(**predictor.document(request.user_id, request.items, scores))

    return app


def main() -> None:
    """Serve until told to end."""
    arguments = parse_arguments()
    os.environ[FOLDER] = str(arguments.folder)
    uvicorn.run(
        f"{__package__}.plain:create_app",
        factory=True,
        host=HOST,
        port=arguments.port,
        workers=arguments.workers,
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main()
