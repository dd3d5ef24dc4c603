"""Triton's metrics, from a page in the form of Triton 2.51."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from redis_recsys.dlrm.statistics import statistics
from redis_recsys.errors import ServingError
from redis_recsys.parameter_server.server import Counts
from redis_recsys.triton.metrics_page import scrape

PAGE = """# HELP nv_inference_count Number of inferences performed
# TYPE nv_inference_count counter
nv_inference_count{model="dlrm",version="1"} 3
# HELP recsys_stage_seconds_bucket buckets
# TYPE recsys_stage_seconds_bucket counter
recsys_stage_seconds_bucket{le="+Inf",stage="say \\"hi\\" twice"} 2.5
# TYPE recsys_requests_total counter
recsys_requests_total 7
"""
TABLES = "".join(
    f'recsys_table_{name}_total{{table="a"}} {value}.000000\n' for value, name in enumerate(Counts().__dict__)
)
HTML = "<html><head><title>something else</title></head></html>\n"


@pytest.fixture
def served() -> Iterator[Callable[[str], int]]:
    """Serve a page; returns the port."""
    page = ""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *args: object) -> None:
            pass

    def serve(text: str) -> int:
        nonlocal page
        page = text
        return server.server_port

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield serve
        server.shutdown()
        thread.join()


def test_samples_have_the_names_and_labels_that_the_server_writes(served: Callable[[str], int]) -> None:
    assert [(each.name, each.labels, each.value) for each in scrape("127.0.0.1", served(PAGE))] == [
        ("nv_inference_count", {"model": "dlrm", "version": "1"}, 3),
        ("recsys_stage_seconds_bucket", {"le": "+Inf", "stage": 'say "hi" twice'}, 2.5),
        ("recsys_requests_total", {}, 7),
    ]


def test_tables_are_counted_and_another_servers_page_is_an_error(served: Callable[[str], int]) -> None:
    (counts,) = statistics("127.0.0.1", served(PAGE + TABLES)).values()
    assert list(counts.__dict__.values()) == list(range(len(counts.__dict__)))
    for page in (PAGE, HTML):
        with pytest.raises(ServingError, match="say nothing of tables"):
            statistics("127.0.0.1", served(page))
