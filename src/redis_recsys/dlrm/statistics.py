"""What the parameter server behind Triton counts, read from Triton's metrics."""

from __future__ import annotations

import re
import urllib.request
from collections import defaultdict

from ..errors import ServingError
from ..parameter_server.server import Counts

LINE = re.compile(r'^recsys_table_(\w+)_total\{table="([^"]+)"\} (\S+)$', re.MULTILINE)
SECONDS = 5.0


def statistics(host: str, metrics_port: int) -> dict[str, Counts]:
    """Counts of every table; they are a few seconds old.

    Args:
        host, metrics_port: of Triton.

    Raises:
        ServingError: it does not answer, or serves no tables.
    """
    where = f"Triton's metrics at {host}:{metrics_port}"
    try:
        with urllib.request.urlopen(f"http://{host}:{metrics_port}/metrics", timeout=SECONDS) as answer:
            text = answer.read().decode()
    except OSError as error:
        raise ServingError(f"cannot read {where} ({error}): is 'recsys dlrm serve' running?") from error
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for name, table, value in LINE.findall(text):
        found[table][name] = int(float(value))
    if not found:
        raise ServingError(f"{where} say nothing of tables: is it 'recsys dlrm serve' that runs there?")
    return {table: Counts(**counts) for table, counts in found.items()}
