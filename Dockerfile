# One image for API, worker, control process and dashboard; docker-compose.yml says which of them a container is.
FROM python:3.12-slim
WORKDIR /srv/incipit
COPY . .
# Editable, because builtin: models and presets are read from the source tree.
RUN pip install --no-cache-dir --constraint constraints.txt --editable ".[engine,api,worker,dashboard]" \
    && useradd --create-home --uid 1000 incipit \
    && install -d -o incipit -g incipit -m 700 /data
USER incipit
ENV INCIPIT_HOME=/data PYTHONUNBUFFERED=1
CMD ["python", "-m", "backend"]
