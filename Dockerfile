# syntax=docker/dockerfile:1
# A server without torch. Build:  docker build -t qafila .
# Run:    docker run --rm -p 127.0.0.1:8000:8000 -v qafila-models:/var/cache/qafila -e QAFILA_API_KEY=... qafila
# The port is published for this machine alone; a key is needed all the same, because the server cannot see that.

FROM python:3.13-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ cmake ninja-build \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python -m venv /opt/qafila
ENV PATH=/opt/qafila/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
# Dependencies first: they change less often than the code.
COPY constraints.txt pyproject.toml ./
RUN python - > /tmp/requirements.txt <<'PYTHON'
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
print("\n".join(project["dependencies"] + project["optional-dependencies"]["serve"]))
PYTHON
RUN pip install --constraint constraints.txt --requirement /tmp/requirements.txt scikit-build-core nanobind
COPY CHANGELOG.md LICENSE README.md ./
COPY src ./src
# pip stays: it fetches the default model when there is none yet.
RUN pip install --no-build-isolation --no-deps . && pip uninstall --yes scikit-build-core nanobind

FROM python:3.13-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/cache/qafila --shell /usr/sbin/nologin qafila \
    && install --directory --owner=qafila --group=qafila --mode=0700 /var/cache/qafila
COPY --from=build /opt/qafila /opt/qafila
ENV PATH=/opt/qafila/bin:$PATH \
    QAFILA_HOME=/var/cache/qafila \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER qafila
VOLUME /var/cache/qafila
EXPOSE 8000
# /healthz answers as soon as the process lives, also while it fetches a model.
HEALTHCHECK --interval=15s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["qafila", "serve", "--host", "0.0.0.0", "--port", "8000", "--log-format", "json"]
CMD ["default"]
