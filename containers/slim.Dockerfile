# A container that runs exported models: numpy, Pillow, ONNX Runtime and uflow, no PyTorch. Built without network from
# the folder that docs/guide/offline.md fills:
#   podman build --network none -f containers/slim.Dockerfile -t uflow .
#   podman run --rm -v ./tile_onnx:/model:ro -v ./new_parts:/images:ro uflow predict /model /images
ARG PYTHON=docker.io/library/python:3.13-slim
FROM ${PYTHON}
ARG EXTRAS=onnx
# The versions are those in the folder.
# hadolint ignore=DL3013
RUN --mount=type=bind,source=wheels,target=/wheels \
    python -m pip install --no-cache-dir --no-index --find-links /wheels "uflow-ad[${EXTRAS}]"
RUN useradd --uid 1000 --create-home uflow
USER 1000
WORKDIR /home/uflow
ENTRYPOINT ["uflow"]
CMD ["--help"]
