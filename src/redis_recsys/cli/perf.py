"""``recsys perf-analyzer``: the load generator of Triton's makers."""

from __future__ import annotations

import subprocess

import typer

from ..config import Settings
from .app import app
from .options import options


@app.command(
    "perf-analyzer",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
@options()
def perf_analyzer(settings: Settings, context: typer.Context) -> None:
    """Run NVIDIA's perf_analyzer, out of the serving environment, with the options that follow.

    recsys perf-analyzer -m recommender --input-data users.json --concurrency-range 16
    """
    from ..triton.perf_analyzer import perf_analyzer as found

    with found(settings.triton.environment) as (program, variables):
        raise typer.Exit(subprocess.run([program, *context.args], env=variables).returncode)
