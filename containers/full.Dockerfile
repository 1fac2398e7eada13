# A container for training: all that uflow can do. Built without network from a folder of wheels, as containers/slim is:
#   pip wheel ".[all]" --wheel-dir wheels
#   podman build --network none -f containers/full.Dockerfile -t uflow-full .
#   podman run --rm -v ./data:/data:ro -v ./models:/models uflow-full train /data/tile/train/good --output /models/t.uflow
ARG PYTHON=docker.io/library/python:3.13-slim
FROM ${PYTHON}
ARG EXTRAS=all
# The versions are those in the folder.
# hadolint ignore=DL3013
RUN --mount=type=bind,source=wheels,target=/wheels \
    python -m pip install --no-cache-dir --no-index --find-links /wheels "uflow-ad[${EXTRAS}]"
RUN useradd --uid 1000 --create-home uflow
USER 1000
WORKDIR /home/uflow
ENTRYPOINT ["uflow"]
CMD ["--help"]
