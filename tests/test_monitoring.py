"""Dashboards and alerts: well formed, on metrics that exist, and the same for containers and hosts."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import yaml

from redis_recsys.config import OnlineSettings
from redis_recsys.dlrm.table_metrics import send_table_metrics
from redis_recsys.online.partition import stages_of
from redis_recsys.online.stage_metrics import BUCKETS, StageMetrics, send_stage_metrics
from redis_recsys.parameter_server.server import Counts
from tests.support import composed
from tests.support.paths import ROOT

MONITORING = ROOT / "monitoring"
RULES = sorted(MONITORING.glob("prometheus/rules/*.yml"))
TESTS = sorted(MONITORING.glob("prometheus/tests/*.yml"))
DASHBOARDS = sorted(MONITORING.glob("grafana/dashboards/*.json"))
EXAMPLES = ["offline-batch-recsys", "multi-stage", "large-scale-recsys"]
JOBS = {"triton", "redis", "redis-enterprise", "node", "prometheus"}
OURS = re.compile(r"(?<![:\w])recsys_\w+")  # not the recorded ones, such as instance:recsys_requests:rate5m


def stem(path: Path) -> str:
    return path.stem


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules_of(path: Path) -> list[dict[str, Any]]:
    return [rule for group in loaded(path)["groups"] for rule in group["rules"]]


ALERTS = [rule for path in RULES for rule in rules_of(path) if "alert" in rule]


class Family:
    """Metric of Triton, as far as ``triton.metrics`` uses it."""

    COUNTER = "counter"
    made: dict[str, dict[tuple[tuple[str, str], ...], float]]  # name -> labels -> count; a new one for every test

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert kind == self.COUNTER
        assert description
        self.series = self.made[name] = {}

    def Metric(self, labels: dict[str, str]) -> Any:  # noqa: N802  # Triton's name
        return Series(self.series, tuple(sorted(labels.items())))


class Series:
    def __init__(self, counts: dict[tuple[tuple[str, str], ...], float], labels: tuple[tuple[str, str], ...]) -> None:
        self.counts, self.labels = counts, labels
        counts[labels] = 0.0

    def increment(self, more: float) -> None:
        self.counts[self.labels] += more


@pytest.fixture
def family() -> type[Family]:
    return type("Fresh", (Family,), {"made": {}})


@pytest.fixture(scope="module")
def helper() -> ModuleType:
    """cloud-deployment/tests/dashboards.py"""
    spec = importlib.util.spec_from_file_location("dashboards", ROOT / "cloud-deployment" / "tests" / "dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_counts_of_stages_and_candidates_are_sent_as_they_grow(family: type[Family]) -> None:
    timings = StageMetrics(("candidates", "filter", "ranking"))
    sender = send_stage_metrics(timings, family)
    try:
        timings.add("ranking", 0.0004)
        timings.requests, timings.degraded = 3, 1
        timings.candidates["candidates"] += 200
        timings.candidates["filter"] += 180
        sender.send()
        timings.candidates["filter"] += 1
    finally:
        sender.close()
    made = family.made
    assert made["recsys_candidates_total"] == {(("stage", "candidates"),): 200, (("stage", "filter"),): 181}
    assert (made["recsys_requests_total"], made["recsys_degraded_total"]) == ({(): 3}, {(): 1})
    buckets = made["recsys_stage_seconds_bucket"]
    assert buckets[("le", "0.0002"), ("stage", "ranking")] == 0
    assert buckets[("le", "0.0005"), ("stage", "ranking")] == buckets[("le", "+Inf"), ("stage", "ranking")] == 1


def test_every_metric_of_ours_in_rules_and_dashboards_is_one_that_the_library_sends(family: type[Family]) -> None:
    send_stage_metrics(StageMetrics(tuple(stages_of(OnlineSettings()))), family).close()
    send_table_metrics(["t"], [field.name for field in fields(Counts)], lambda: {}, family).close()
    used = {name for path in (*RULES, *DASHBOARDS) for name in OURS.findall(path.read_text())}
    assert used == set(family.made)  # and every metric of the library is on a dashboard or in an alert


def test_the_histograms_of_stages_reach_beyond_the_thresholds_of_the_alerts_about_them() -> None:
    slow = [alert["expr"] for alert in ALERTS if "stage" in alert["expr"] and "seconds" in alert["expr"]]
    assert len(slow) == 2
    assert all(float(expr.rsplit("> ", 1)[1]) < max(BUCKETS) for expr in slow)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    assert alert["annotations"]["runbook"] == "docs/operations/cloud-runbook.md#runbook"
    assert re.search(r"\{\{ \$labels\.\w+ \}\}", alert["annotations"]["summary"]) or "sum(" in alert["expr"]
    assert len(alert["annotations"]["description"]) > 60


def test_names_of_alerts_and_of_records_are_there_once() -> None:
    names = [rule.get("alert") or rule["record"] for path in RULES for rule in rules_of(path)]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z_]+:[a-z_]+:[a-z0-9_]+", name) or name.isalnum() for name in names)


@pytest.mark.parametrize("path", RULES, ids=stem)
def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not(path: Path) -> None:
    tests = loaded(MONITORING / "prometheus" / "tests" / path.name)
    assert tests["rule_files"] == [f"../rules/{path.name}"]
    fires: set[str] = set()
    rests: set[str] = set()
    for test in tests["tests"]:
        subjects = set(re.findall(r"[A-Z]\w+", test["name"]))
        for case in test["promql_expr_test"]:
            if "ALERTS" in case["expr"]:
                text = case["expr"] + str(case["exp_samples"])
                named = set(re.findall(r'alertname="(\w+)"', text)) or subjects
                (fires if case["exp_samples"] else rests).update(named & subjects)
        # "good" and the like are there besides "bad", and not among those that fire
        rests |= subjects if len(re.findall(r"instance=\"(?!bad)", str(test["input_series"]))) else set()
    names = {rule["alert"] for rule in rules_of(path) if "alert" in rule}
    assert names == fires
    assert names <= rests


def test_jobs_in_the_rules_are_those_that_the_configurations_have() -> None:
    text = "".join(path.read_text() for path in RULES)
    assert set(re.findall(r'job="([\w-]+)"', text)) <= JOBS


@pytest.mark.parametrize("path", DASHBOARDS, ids=stem)
def test_a_dashboard_is_well_formed(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"] == f"recsys-{path.stem}"
    assert dashboard["schemaVersion"] >= 39
    assert {"title", "description", "templating", "time"} <= set(dashboard)
    assert "id" not in dashboard  # Grafana's own number of it
    source = {"type": "prometheus", "uid": "${datasource}"}
    variables = dashboard["templating"]["list"]
    assert [each["name"] for each in variables][:3] == ["datasource", "job", "instance"]
    assert variables[0]["query"] == "prometheus"
    for variable in variables[1:]:
        assert variable["datasource"] == source
        assert variable["allValue"] == ".*"
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    names = {each["name"] for each in variables} | {"__rate_interval"}
    for panel in panels:
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"] == source
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= names
            selectors = re.findall(r"\{([^{}]*)\}", target["expr"])
            assert selectors
            assert all('job=~"$job", instance=~"$instance"' in selector for selector in selectors)


@pytest.mark.parametrize("path", DASHBOARDS, ids=stem)
def test_no_panel_lies_upon_another_or_beside_the_grid(path: Path) -> None:
    taken = np.zeros((300, 24), bool)
    for panel in json.loads(path.read_text())["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = taken[place["y"] : place["y"] + place["h"], place["x"] : place["x"] + place["w"]]
        assert not cells.any(), panel["title"]
        cells[:] = True


def test_dashboards_have_names_and_addresses_of_their_own() -> None:
    dashboards = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert {path.stem for path in DASHBOARDS} == {"recommender", "redis", "triton", "parameter-server", "hosts"}
    for key in ("uid", "title"):
        assert len({dashboard[key] for dashboard in dashboards}) == len(dashboards)


def test_queries_come_with_all_variables_filled_in(helper: ModuleType) -> None:
    queries = helper.queries(MONITORING / "grafana" / "dashboards", "5m")
    targets = sum(path.read_text().count('"expr": ') - 1 for path in DASHBOARDS)  # one is that of the annotations
    assert len(queries) == targets > 100
    for query in queries:
        assert "$" not in query.expr
        assert '""' not in query.expr
        for left, right in ("()", "[]", "{}"):
            assert query.expr.count(left) == query.expr.count(right)
    assert any("[5m]" in query.expr for query in queries)


ANSWERS = {
    "full": (200, {"resultType": "vector", "result": [{"value": [0, "NaN"]}, {"value": [0, "1"]}]}),
    "scalar": (200, {"resultType": "scalar", "result": [0, "1"]}),
    "empty": (200, {"resultType": "vector", "result": []}),
    "undefined": (200, {"resultType": "vector", "result": [{"value": [0, "NaN"]}]}),
    "wrong": (400, {}),
}


class Prometheus(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        (query,) = parse_qs(urlsplit(self.path).query)["query"]
        status, data = ANSWERS[query]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps({"data": data, "error": "parse error"}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def prometheus() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Prometheus) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_check_of_dashboards_names_queries_without_data_or_with_an_error(
    helper: ModuleType, prometheus: str, tmp_path: Path
) -> None:
    panel = {"title": "panel", "targets": [{"expr": expr} for expr in ANSWERS]}
    row = {"title": "collapsed", "panels": [panel]}
    (tmp_path / "one.json").write_text(json.dumps({"title": "board", "panels": [row]}))
    failures = {failure.query.expr: failure.reason for failure in helper.check(prometheus, tmp_path)}
    assert set(failures) == {"empty", "undefined", "wrong"}
    assert "parse error" in failures["wrong"]
    assert "does not answer" in helper.check("http://127.0.0.1:1", tmp_path)[0].reason


@pytest.mark.parametrize("example", EXAMPLES)
def test_prometheus_of_an_example_asks_containers_that_are_there(example: str) -> None:
    services = composed.services(ROOT / example / "docker-compose.yml")
    config = loaded(MONITORING / "prometheus" / "compose" / f"{example}.yml")
    assert config["rule_files"] == ["/etc/prometheus/rules/*.yml"]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert set(jobs) <= JOBS
    assert ("triton" in jobs) == ("triton" in services)
    instances = [
        (name, group["labels"]["instance"]) for name, job in jobs.items() for group in job.get("static_configs", [])
    ]
    assert len(set(instances)) == len(instances)
    asked = re.findall(r"(?:redis://)?([a-z][\w-]*):\d+\b", (json.dumps(config)))
    assert set(asked) <= set(services) | {"redis"}
    nodes = {name for name in services if re.fullmatch(r"redis(-\d)?", name)}
    assert {instance for name, instance in instances if name == "redis"} == nodes


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_profile_monitoring_starts_pinned_images_as_users_without_rights_on_files_that_exist(example: str) -> None:
    services = composed.services(ROOT / example / "docker-compose.yml")
    watching = {name: service for name, service in services.items() if service.get("profiles") == ["monitoring"]}
    assert set(watching) == {"prometheus", "grafana", "redis-exporter"}
    for service in watching.values():
        assert re.search(r":v?\d+\.\d+\.\d+(-alpine)?$", service["image"])
        assert service["user"] not in ("root", "0")
        assert service["healthcheck"]["test"]
        for volume in service.get("volumes", []):
            source, _, *mode = volume.split(":")
            if source.startswith("."):
                assert mode == ["ro"]
                assert (ROOT / example / source).resolve().exists(), source
    assert "ports" not in watching["redis-exporter"]
    assert watching["grafana"]["environment"]["GF_AUTH_ANONYMOUS_ENABLED"] == "false"


@pytest.mark.parametrize("example", EXAMPLES)
def test_grafana_does_not_start_without_a_password(example: str) -> None:
    grafana = composed.services(ROOT / example / "docker-compose.yml")["grafana"]
    command = [word.replace("$$", "$").replace("/run.sh", "echo started") for word in grafana["entrypoint"]]
    for password, code, said in (("", 1, "GRAFANA_PASSWORD"), ("secret", 0, "started")):
        environment = {"GF_SECURITY_ADMIN_PASSWORD": password, "PATH": "/usr/bin:/bin"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (ended.returncode, said in ended.stdout) == (code, True)


def test_the_data_sources_of_hosts_and_containers_differ_in_their_address_alone() -> None:
    (host,) = loaded(MONITORING / "grafana" / "provisioning" / "datasources" / "prometheus.yml")["datasources"]
    (container,) = loaded(MONITORING / "grafana" / "compose" / "prometheus.yml")["datasources"]
    assert (host.pop("url"), container.pop("url")) == ("http://127.0.0.1:9090", "http://prometheus:9090")
    assert host == container
    assert (host["uid"], host["type"]) == ("prometheus", "prometheus")


def test_dashboards_are_provisioned_from_the_folder_to_which_they_are_copied() -> None:
    (provider,) = loaded(MONITORING / "grafana" / "provisioning" / "dashboards" / "recsys.yml")["providers"]
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    assert not provider["allowUiUpdates"]
    for example in EXAMPLES:
        grafana = composed.services(ROOT / example / "docker-compose.yml")["grafana"]
        assert "../monitoring/grafana/dashboards:/var/lib/grafana/dashboards:ro" in grafana["volumes"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool here")
@pytest.mark.parametrize(("words", "files"), [("check rules", RULES), ("test rules", TESTS)], ids=["rules", "tests"])
def test_promtool_agrees(words: str, files: list[Path]) -> None:
    ended = subprocess.run(["promtool", *words.split(), *files], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
