"""``recsys serve`` and ``recsys recommend`` as a user runs them, on a real Redis and a real Triton."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from redis_recsys.cli import online
from redis_recsys.triton.metrics_page import scrape
from tests.support.commands import Outcome, good
from tests.support.paths import ROOT
from tests.support.planted import Trained

RECSYS = str(Path(sys.executable).parent / "recsys")

Recsys = Callable[..., Outcome]


def items_handed_on(port: int, stage: str) -> float:
    """A stage's value in Triton's metrics, as soon as there is one."""
    deadline = time.monotonic() + 15
    while True:
        for sample in scrape("127.0.0.1", port):
            if sample.name == "recsys_candidates_total" and sample.labels == {"stage": stage} and sample.value > 0:
                return sample.value
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.usefixtures("use_server")
def test_serve_waits_for_a_deployment_answers_follows_events_and_stops(
    recsys: Recsys, trained: Trained, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECSYS_TRITON_ENVIRONMENT", str(ROOT / ".venv-serving"))
    # The machine may be busy: the answer and the event have to come, however late.
    monkeypatch.setenv("RECSYS_TRITON_TIMEOUT", "60")
    monkeypatch.setattr(online, "WAIT_SECONDS", 60.0)
    assert "recsys deploy" in recsys("serve", "--grpc-port", 0, "--http-port", 0, "--metrics-port", 0).error()
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    serving = subprocess.Popen(
        [RECSYS, "serve", "--wait", *ports], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        report = json.loads(good(recsys("deploy", trained.bundle.path, "--json")))
        deadline = time.monotonic() + 120
        while not (tmp_path / "data" / "triton" / "server.json").exists():
            assert serving.poll() is None, serving.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (answer,) = json.loads(good(recsys("recommend", 1, "--explain", "--json")))
        assert str(answer["generation"]) == str(report["generation"])
        assert not answer["degraded"]
        assert {stage for stage, us in answer["stage_us"].items() if us > 0} >= {"user_features", "ranking", "ordering"}
        assert all(each["sources"] for each in answer["explanations"])
        funnel = answer["funnel"]
        together = sum(funnel[source] for source in ("nearest", "similar", "popular"))
        assert together >= funnel["merged"] >= funnel["filtered"] >= funnel["shown"] == len(answer["items"])
        assert [each["score"] for each in answer["explanations"]] == pytest.approx(answer["scores"], abs=1e-6)
        first = answer["items"][0]
        good(recsys("event", 1, first, "view", "--wait"))
        (after,) = json.loads(good(recsys("recommend", 1, "--json")))
        assert first not in after["items"]
        shown = recsys("recommend", 1, "--bundle", trained.bundle.path).out
        assert "Item " in shown
        explained = recsys("recommend", 1, "--explain", "--bundle", trained.bundle.path).out
        steps = ("nearest", "similar", "popular", "merged", "filtered", "shown")
        assert re.search("candidates: " + ", ".join(rf"\d+ {step}" for step in steps), explained)
        assert "probability" not in explained
        assert explained.count("Item ") == 2 * shown.count("Item ")
        port = json.loads((tmp_path / "data" / "triton" / "server.json").read_text())["metrics_port"]
        handed_on = {stage: items_handed_on(port, stage) for stage in ("candidates", "filter")}
        assert handed_on["candidates"] >= handed_on["filter"] > 0
        serving.send_signal(signal.SIGTERM)
        out, _ = serving.communicate(timeout=60)
        assert "Triton serves" in out
        assert serving.returncode == 0
    finally:
        if serving.poll() is None:
            os.kill(serving.pid, signal.SIGKILL)
            serving.communicate()
    assert "recsys serve" in recsys("recommend", 1).error()
