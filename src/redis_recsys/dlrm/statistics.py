"""Counts of the parameter server behind Triton, read from Triton's metrics."""

from __future__ import annotations

from collections import defaultdict

from ..errors import ServingError
from ..parameter_server.server import Counts
from ..triton.metrics_page import scrape

PREFIX, SUFFIX = "recsys_table_", "_total"


def statistics(host: str, metrics_port: int) -> dict[str, Counts]:
    """Read the counts of every table, a few seconds old.

    Args:
        host, metrics_port: address of Triton's metrics.

    Raises:
        ServingError: Triton does not answer, or serves no tables.
    """
    where = f"Triton's metrics at {host}:{metrics_port}"
    try:
        samples = scrape(host, metrics_port)
    except OSError as error:
        raise ServingError(f"cannot read {where} ({error}): is 'recsys dlrm serve' running?") from error
    except ValueError:  # another server's page
        samples = []
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    for name, labels, value, *_ in samples:
        if name.startswith(PREFIX):
            counts[labels["table"]][name.removeprefix(PREFIX).removesuffix(SUFFIX)] = int(value)
    if not counts:
        raise ServingError(f"{where} say nothing of tables: is it 'recsys dlrm serve' that runs there?")
    return {table: Counts(**fields) for table, fields in counts.items()}
