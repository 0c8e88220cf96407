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

FROM python:3.12.12-slim-bookworm AS base
ENV PENSTOCK_HOST=0.0.0.0 \
    PENSTOCK_MODELS=/models \
    PENSTOCK_ENGINE_DIR=/engines
# The folder is in the image so that a volume on it begins with its owner and mode: engines are native code.
RUN useradd --system --uid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin penstock \
 && install --directory --owner=penstock --mode=0700 /engines
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ.get('PENSTOCK_PORT', 8080)}/livez\", timeout=2)"]
ENTRYPOINT ["penstock", "serve"]

# CUDA, cuDNN and TensorRT come with the wheels, in the versions that fit; the driver's libraries come from the host.
FROM base AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA="cuda>=13.0"
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/penstock-*.whl)[gpu]"
USER 10001

FROM base AS cpu
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/penstock-*.whl)[cpu]"
USER 10001
