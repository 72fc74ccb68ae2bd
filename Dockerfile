# syntax=docker/dockerfile:1
# One image for the api, the worker and the migration: `asmg serve`, `asmg worker`, `asmg migrate`.
#
# PyTorch's default build for Linux contains CUDA. For the much smaller CPU build give its index and version:
#   docker compose build --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's CPU index> --build-arg TORCH_SPEC=torch==2.13.0+cpu
FROM python:3.12-slim AS build
ARG TORCH_SPEC=torch==2.13.0
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/asmg
ENV PATH=/opt/asmg/bin:$PATH
# First and in its own layer, because it is the largest part and changes least.
RUN pip install "$TORCH_SPEC"
WORKDIR /src
COPY . .
RUN pip install ".[objects,otel]"

FROM python:3.12-slim
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/asmg --shell /usr/sbin/nologin asmg \
    && install --directory --owner asmg --group asmg --mode 0750 /var/lib/asmg
COPY --from=build /opt/asmg /opt/asmg
ENV PATH=/opt/asmg/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ASMG_DATA_DIR=/var/lib/asmg \
    NUMBA_CACHE_DIR=/var/lib/asmg/numba
# By number, so that an orchestrator can check that it is not root.
USER 10001:10001
WORKDIR /var/lib/asmg
VOLUME /var/lib/asmg
EXPOSE 8000
# Checks the api; docker-compose.yml has another check for the worker.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["asmg", "serve", "--host", "0.0.0.0", "--no-worker"]
