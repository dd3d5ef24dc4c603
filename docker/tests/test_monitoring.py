"""Example 2 with `--profile monitoring`."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from engine import Engine
from stack import Stack, until

JOBS = {"prometheus", "redis", "triton"}


def test_prometheus_sees_redis_and_knows_the_rules(engine: Engine) -> None:
    with Stack(engine, "multi-stage", GRAFANA_PASSWORD="of-grafana") as stack:
        # With the real images everything; Grafana's has no stand-in.
        everything = "registries" in engine.images
        stack.compose(f"--profile monitoring up --detach {'' if everything else 'prometheus redis-exporter redis'}")
        stack.healthy("prometheus", "redis-exporter", *(["grafana"] if everything else []))

        def asked(path: str) -> Any:
            return json.loads(engine.beside("curl", "-sf", f"http://127.0.0.1:9090/api/v1/{path}"))["data"]

        until(lambda: asked(f"query?query={quote('redis_up')}")["result"], 60, "no metrics of Redis")
        assert asked("query?query=redis_up")["result"][0]["value"][1] == "1"
        assert {target["labels"]["job"] for target in asked("targets")["activeTargets"]} == JOBS
        assert {group["name"] for group in asked("rules")["groups"]}
        stack.compose("--profile monitoring down --volumes")
        assert stack.left() == ""
