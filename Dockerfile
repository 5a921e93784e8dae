# syntax=docker/dockerfile:1
# The engine on NVIDIA GPUs (driver 580 or newer, for CUDA 13).
#
#   docker build -t danqing .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/data" -v danqing-cache:/cache \
#       danqing curate 'shards/*.tar' -o out --device cuda
#
# Build arguments:
#   BASE            Debian or Ubuntu with Python 3.11 to 3.13. CUDA's libraries come from the pinned packages, not from
#                   the base. For reproducible builds: BASE=nvidia/cuda@sha256:…
#   TORCH=1         adds torch (requirements/torch.txt)
#   TENSORRT        adds TensorRT, for example tensorrt-cu13==11.4.0.106. Its packages are placeholders that fetch the
#                   libraries from NVIDIA's package index; TENSORRT_INDEX names a mirror of that index
#   REVISION        the commit, for the label
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04

FROM ${BASE} AS python
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

FROM python AS wheel
RUN python3 -m venv /opt/build
COPY pyproject.toml README.md LICENSE /src/
COPY danqing /src/danqing
COPY engine /src/engine
COPY kernels /src/kernels
COPY trt_models /src/trt_models
COPY profiling /src/profiling
RUN /opt/build/bin/pip wheel --no-deps --wheel-dir /wheels /src

FROM python
# Any uid can write to /data and /cache, and has a home: `--user` may name one that /etc/passwd does not list.
RUN useradd --uid 10001 --gid 0 --no-create-home --home-dir /cache danqing \
    && install --directory --mode=1777 /cache /data
RUN python3 -m venv /opt/danqing
# --no-deps: everything is in the list but onnxruntime, in whose place stands onnxruntime-gpu.
COPY requirements/cuda13.txt requirements/torch.txt /opt/danqing/requirements/
RUN /opt/danqing/bin/pip install --no-deps --require-hashes --requirement /opt/danqing/requirements/cuda13.txt
ARG TORCH
RUN if [ -n "${TORCH}" ]; then \
        /opt/danqing/bin/pip install --no-deps --require-hashes --requirement /opt/danqing/requirements/torch.txt; \
    fi
ARG TENSORRT
ARG TENSORRT_INDEX
RUN if [ -n "${TENSORRT}" ]; then \
        /opt/danqing/bin/pip install ${TENSORRT_INDEX:+--extra-index-url "${TENSORRT_INDEX}"} "${TENSORRT}"; \
    fi
# Last, in layers of its own: a new version of the engine changes a few megabytes of the image.
COPY --from=wheel /wheels /opt/danqing/wheels
RUN /opt/danqing/bin/pip install --no-deps /opt/danqing/wheels/*.whl

# LD_LIBRARY_PATH holds only the folders in which clusters mount the driver; CUDA's libraries come from the packages.
ENV PATH=/opt/danqing/bin:${PATH} \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64 \
    HOME=/cache \
    DANQING_CACHE=/cache \
    CUPY_CACHE_DIR=/cache/cupy \
    NUMBA_CACHE_DIR=/cache/numba \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
USER 10001
WORKDIR /data
VOLUME ["/cache"]
EXPOSE 9100
# Queries the workers that serve metrics in this container; a job without metrics counts as healthy.
HEALTHCHECK --interval=60s --timeout=20s --start-period=60s CMD ["python", "-P", "-m", "danqing.engine.score.health"]
ENTRYPOINT ["danqing"]
CMD ["--help"]

ARG BASE
ARG VERSION=0.1.0
ARG REVISION
LABEL org.opencontainers.image.title="DanQing Engine" \
      org.opencontainers.image.description="Turns crawled image-text pairs into a training set on NVIDIA GPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE}"
