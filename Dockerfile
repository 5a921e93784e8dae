# syntax=docker/dockerfile:1
# The engine on NVIDIA GPUs (driver for CUDA 13).
#
#   docker build -t danqing .
#   docker run --rm --gpus all -v "$PWD:/data" -v danqing-cache:/cache danqing curate 'shards/*.tar' -o out --device cuda
#
# Where builds must repeat bit by bit, pin the base: --build-arg BASE=nvidia/cuda@sha256:…
# TensorRT comes from NVIDIA's own package index:
#   --build-arg TENSORRT=tensorrt-cu13==11.4.0.106 --build-arg TENSORRT_INDEX=URL
ARG BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04

FROM ${BASE} AS python
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

FROM python AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/danqing
# --no-deps: everything is in the list but onnxruntime, in whose place stands onnxruntime-gpu.
COPY requirements/cuda13.txt /src/requirements/
RUN /opt/danqing/bin/pip install --no-deps --require-hashes --requirement /src/requirements/cuda13.txt
ARG TENSORRT
ARG TENSORRT_INDEX
RUN if [ -n "${TENSORRT}" ]; then \
        /opt/danqing/bin/pip install ${TENSORRT_INDEX:+--extra-index-url "${TENSORRT_INDEX}"} "${TENSORRT}"; \
    fi
COPY pyproject.toml README.md LICENSE /src/
COPY engine /src/engine
COPY kernels /src/kernels
COPY trt_models /src/trt_models
COPY profiling /src/profiling
RUN /opt/danqing/bin/pip wheel --no-deps --wheel-dir /wheels /src \
    && /opt/danqing/bin/pip install --no-deps /wheels/*.whl

FROM python
COPY --from=build /opt/danqing /opt/danqing
RUN useradd --create-home --uid 10001 danqing \
    && install --directory --owner=danqing /cache /models /data
ENV PATH=/opt/danqing/bin:${PATH} \
    DANQING_CACHE=/cache \
    NUMBA_CACHE_DIR=/cache/numba \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
USER 10001
WORKDIR /data
VOLUME ["/cache", "/models"]
EXPOSE 9100
HEALTHCHECK --interval=60s --timeout=20s --start-period=20s \
    CMD ["python", "-c", "import cupy; assert cupy.cuda.runtime.getDeviceCount()"]
ENTRYPOINT ["danqing"]
CMD ["--help"]
