# Two images: `slim` (Apache-2.0 and other free licences only) and `full` (the default: with FSL,
# whose licence forbids commercial use). docs/container.md says how to build and run them.
ARG BASE_NAME=docker.io/library/python:3.11.15-slim-bookworm
ARG BASE_DIGEST=sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3
# Where the FSL of `full` comes from: `conda`, or `none` for a build without FSL's channel.
ARG FSL=conda

# The program's wheel.
FROM ${BASE_NAME}@${BASE_DIGEST} AS wheel
WORKDIR /src
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt setuptools
COPY pyproject.toml README.md LICENSE ./
COPY workflows workflows
COPY bids_harmony bids_harmony
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /dist .

# All it needs, at the versions of constraints.txt; built again only when these change.
FROM ${BASE_NAME}@${BASE_DIGEST} AS dependencies
# CUDA instead of the CPU: the index of another of torch's builds.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG ENV=/opt/bids_harmony
WORKDIR /src
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt ./
RUN python -m venv --without-pip ${ENV} \
    && pip --python ${ENV}/bin/python install --no-cache-dir --no-compile --no-deps \
        --constraint constraints.txt --index-url ${TORCH_INDEX} torch
COPY container/trim.sh container/check_pins.py ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = p['optional-dependencies']; \
print(*p['dependencies'], *extras['evaluate'], *extras['simulate'], sep='\n')" > requirements.txt \
    && pip --python ${ENV}/bin/python install --no-cache-dir --no-compile \
        --constraint constraints.txt --requirement requirements.txt \
    && ${ENV}/bin/python check_pins.py constraints.txt \
    && sh trim.sh ${ENV}
# A read-only image keeps no bytecode but this; named by hash, so that file times do not matter.
# Torch's one file for later versions of Python does not compile.
RUN python -m compileall -q -j 0 -x py312_ --invalidation-mode unchecked-hash ${ENV}/lib

FROM ${BASE_NAME}@${BASE_DIGEST} AS slim
COPY --from=dependencies /opt/bids_harmony /opt/bids_harmony
# Copied, though a mount would save its 9 MB: Podman takes a layer from its cache whatever the
# mounts hold, and a build of a newer program would have the old one.
COPY --from=wheel /dist /opt/dist
COPY container/clean.sh /opt/bids_harmony/bin/clean
RUN pip --python /opt/bids_harmony/bin/python install --no-cache-dir --no-compile --no-deps \
        /opt/dist/*.whl \
    && sed -i '1s|.*|#!/bin/sh /opt/bids_harmony/bin/clean|' \
        /opt/bids_harmony/bin/bids_harmony /opt/bids_harmony/bin/bids_harmony-simulate \
    && python -m compileall -q --invalidation-mode unchecked-hash \
        /opt/bids_harmony/lib/python3.11/site-packages/bids_harmony
# Any uid may run it, on a read-only root: all that is written goes to OUTPUT_DIR, to the work
# folder and to /tmp. IS_DOCKER_… makes errors about paths speak of mounts.
ENV PATH=/opt/bids_harmony/bin:$PATH \
    HOME=/tmp \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONNOUSERSITE=1 \
    IS_DOCKER_8395080871=1
WORKDIR /tmp
USER 1000:1000
ENTRYPOINT ["bids_harmony"]
# Last, since they change with every commit; `make image` sets them.
ARG IMAGE=bids_harmony
ARG CREATED=unknown
ARG VERSION=unknown
ARG REVISION=unknown
ARG SOURCE=unknown
ARG URL=unknown
ARG DOCUMENTATION=unknown
ARG BASE_NAME
ARG BASE_DIGEST
# Recorded as Container in GeneratedBy of the outputs.
ENV BIDS_HARMONY_DOCKER_TAG=${IMAGE}
LABEL org.opencontainers.image.title="bids_harmony" \
      org.opencontainers.image.description="BIDS App that maps T1-weighted brain scans to one reference site and predicts there" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.url="${URL}" \
      org.opencontainers.image.documentation="${DOCUMENTATION}" \
      org.opencontainers.image.base.name="${BASE_NAME}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}" \
      org.opencontainers.image.licenses="Apache-2.0"

# FSL, which may be unreachable, apart from all that does not need it.
FROM docker.io/mambaorg/micromamba:2.5.0-debian12-slim AS fsl-conda
# The stage is thrown away: only /opt/fsl goes on.
# hadolint ignore=DL3002
USER 0:0
COPY container/fsl.yml /tmp/fsl.yml
RUN micromamba create --yes --prefix /opt/fsl --file /tmp/fsl.yml \
    && micromamba clean --all --yes \
    && micromamba list --prefix /opt/fsl --json > /opt/fsl/packages.json \
    # FSL's licence allows its distribution only with its source code, which is in /opt/fsl/src.
    && rm -rf /opt/fsl/include /opt/fsl/pkgs \
    && test -n "$(find /opt/fsl/src -name '*.cc' -print -quit)" \
    && find /opt/fsl -name '*.a' -delete \
    # A path of the build host in a program shows here, not at the first user's.
    && FSLDIR=/opt/fsl /opt/fsl/bin/remove_ext scan.nii.gz \
    && FSLDIR=/opt/fsl /opt/fsl/bin/flirt -version

FROM ${BASE_NAME}@${BASE_DIGEST} AS fsl-none
RUN mkdir -p /opt/fsl

# hadolint ignore=DL3006
FROM fsl-${FSL} AS fsl

FROM slim AS full
USER 0:0
# For `bet -R`, a script that counts with dc.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends dc \
    && rm -rf /var/lib/apt/lists/*
USER 1000:1000
COPY --from=fsl /opt/fsl /opt/fsl
COPY container/FSL_LICENCE.txt /opt/fsl/LICENCE
# After the program's own environment, whose python must come first.
ENV FSLDIR=/opt/fsl \
    FSLOUTPUTTYPE=NIFTI_GZ \
    FSLMULTIFILEQUIT=TRUE \
    PATH=$PATH:/opt/fsl/bin
# A program or file that FSL's scripts lack shows here, not at the first user's.
COPY container/try_fsl.sh /opt/fsl/try_fsl.sh
ARG FSL
RUN [ "${FSL}" = none ] || sh /opt/fsl/try_fsl.sh
LABEL org.opencontainers.image.licenses="Apache-2.0 AND LicenseRef-FSL" \
      org.opencontainers.image.title="bids_harmony with FSL"
