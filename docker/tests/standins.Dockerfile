# Stand-ins for the images that the examples take from a registry, for machines that reach none: made of Debian's
# packages, with what our files use of the real ones. One target for each.

# python:3.11-slim
FROM debian:bookworm-slim AS python
RUN apt-get -qq update \
 && apt-get -qq install -y --no-install-recommends ca-certificates libpython3.11 python3-venv > /dev/null \
 && ln -s /usr/bin/python3 /usr/local/bin/python \
 && rm -rf /var/lib/apt/lists/*
COPY pip.conf /etc/pip.conf

# redis:8
FROM debian:trixie-slim AS redis
RUN apt-get -qq update \
 && apt-get -qq install -y --no-install-recommends redis-server redis-tools > /dev/null \
 && rm -rf /var/lib/apt/lists/* \
 && mkdir -p /data && chown redis /data
VOLUME /data
WORKDIR /data

FROM debian:trixie-slim AS monitoring
RUN apt-get -qq update \
 && apt-get -qq install -y --no-install-recommends prometheus prometheus-redis-exporter wget > /dev/null \
 && rm -rf /var/lib/apt/lists/*

# prom/prometheus
FROM monitoring AS prometheus
RUN mkdir -p /prometheus && chown nobody /prometheus
ENTRYPOINT ["prometheus"]

# oliver006/redis_exporter
FROM monitoring AS redis_exporter
ENTRYPOINT ["prometheus-redis-exporter"]
