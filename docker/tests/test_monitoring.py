"""The examples with `--profile monitoring`."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
from engine import Engine
from stack import Stack, until

REDIS = {
    "offline-batch-recsys": ["redis"],
    "multi-stage": ["redis"],
    "large-scale-recsys": ["redis-1", "redis-2", "redis-3"],
}


@pytest.mark.parametrize("example", REDIS)
def test_prometheus_sees_every_redis_and_knows_the_rules(engine: Engine, example: str) -> None:
    with Stack(engine, example, GRAFANA_PASSWORD="of-grafana") as stack:
        watching = ["prometheus", "redis-exporter"]
        if "registries" in engine.images:  # Grafana's has no stand-in
            watching.append("grafana")
        stack.compose(f"--profile monitoring up --detach {' '.join(watching + REDIS[example])}")
        stack.healthy(*watching)

        def asked(path: str) -> Any:
            return json.loads(engine.beside("curl", "-sf", f"http://127.0.0.1:9090/api/v1/{path}"))["data"]

        def seen() -> bool:
            found = asked(f"query?query={quote('redis_up == 1')}")["result"]
            return {each["metric"]["instance"] for each in found} == set(REDIS[example])

        until(seen, 60, f"{example}: Prometheus does not see {REDIS[example]}")
        assert asked("rules")["groups"]
        stack.compose("--profile monitoring down --volumes")
        assert stack.left() == ""
