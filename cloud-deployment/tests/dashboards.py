"""Whether the dashboards show something: every query of every panel, asked of a Prometheus as Grafana would ask it."""

from __future__ import annotations

import json
import math
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

WINDOW = "1m"
SECONDS = 10.0
VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")


class Query(NamedTuple):
    """One query of a panel.

    Attributes:
        dashboard: its title.
        panel: its title.
        expr: PromQL, with the variables' values in it.
    """

    dashboard: str
    panel: str
    expr: str


class Failure(NamedTuple):
    """A query that shows nothing.

    Attributes:
        query: of the panel.
        reason: what Prometheus says.
    """

    query: Query
    reason: str


def queries(folder: Path, window: str = WINDOW) -> list[Query]:
    """What the dashboards in a folder ask for, with *All* chosen for every variable.

    Args:
        folder: with a JSON file for each dashboard.
        window: that ``$__rate_interval``, ``$__interval`` and ``$__range`` stand for: at least four times the scrape
            interval.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        dashboard: dict[str, Any] = json.loads(path.read_text())
        for panel in _panels(dashboard["panels"]):
            for target in panel.get("targets", []):
                expr = VARIABLE.sub(lambda match: _value(match[1] or match[2], window), target["expr"])
                found.append(Query(dashboard["title"], panel["title"], expr))
    return found


def check(prometheus_url: str, folder: Path, window: str = WINDOW) -> list[Failure]:
    """The queries without data, or with an error.

    Not a number is no data either: such is a rate of something divided by nothing, so requests have to have come within
    ``window``.

    Args:
        prometheus_url: such as ``http://127.0.0.1:9090``.
        folder: with a JSON file for each dashboard.
        window: see ``queries``.
    """
    failures = []
    for query in queries(folder, window):
        reason = _problem(prometheus_url, query.expr)
        if reason is not None:
            failures.append(Failure(query, reason))
    return failures


def _panels(panels: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All panels, those in collapsed rows among them."""
    for panel in panels:
        yield panel
        yield from _panels(panel.get("panels", []))


def _value(variable: str, window: str) -> str:
    return window if variable in ("__rate_interval", "__interval", "__range") else ".*"


def _problem(url: str, expr: str) -> str | None:
    """Why a query has nothing to show; None if it has."""
    address = f"{url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': expr})}"
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as response:
            answer: dict[str, Any] = json.load(response)
    except urllib.error.HTTPError as error:
        return error.read().decode(errors="replace")
    except OSError as error:
        return f"{url} does not answer: {error}"
    data = answer["data"]
    samples = data["result"] if data["resultType"] == "vector" else [{"value": data["result"]}]
    if not samples:
        return "no data"
    if all(math.isnan(float(sample["value"][1])) for sample in samples):
        return "not a number"
    return None
