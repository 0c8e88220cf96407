# syntax=docker/dockerfile:1
# docker build --target cpu -t penstock .            docker run -p 8080:8080 -v "$PWD/models:/models:ro" penstock
# docker build --target gpu -t penstock:gpu .        docker run --gpus all … penstock:gpu --device cuda:0

FROM python:3.12.12-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY gpuworker gpuworker
COPY shm shm
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# CUDA 12 and cuDNN 9 are what the wheels of onnxruntime-gpu and tensorrt are built for.
FROM nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04 AS gpu
# The base image's distribution has one Python 3.12, kept current by its security updates; a pinned one would vanish.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3.12 python3.12-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3.12 -m venv /opt/penstock
ENV PATH=/opt/penstock/bin:$PATH \
    PENSTOCK_HOST=0.0.0.0 \
    PENSTOCK_MODELS=/models
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/penstock-*.whl)[gpu]"
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin penstock
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ.get('PENSTOCK_PORT', 8080)}/livez\", timeout=2)"]
ENTRYPOINT ["penstock", "serve"]

FROM python:3.12.12-slim-bookworm AS cpu
ENV PENSTOCK_HOST=0.0.0.0 \
    PENSTOCK_MODELS=/models
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/penstock-*.whl)[cpu]"
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin penstock
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ.get('PENSTOCK_PORT', 8080)}/livez\", timeout=2)"]
ENTRYPOINT ["penstock", "serve"]
