"""A look at the machine and at Redis before anything is started."""

from __future__ import annotations

from typing import Annotated

import typer

from ..config import Settings
from ..errors import ConfigError
from .app import app, out
from .options import options

GIB = 1 << 30


@app.command()
@options("redis")
def check(
    settings: Settings,
    memory: Annotated[float, typer.Option(help="GiB of memory that are needed", min=0)] = 0,
    cluster: Annotated[
        bool,
        typer.Option("--cluster", help="a Redis Cluster will do, which can hold the tables of 'recsys dlrm' alone"),
    ] = False,
) -> None:
    """Tell whether there is enough memory, and whether Redis can be reached and takes the login.

    The containers of the examples ask this before the others start.
    """
    from ..store.connection import connect
    from ..utils.machine import memory as memory_of_machine

    there = memory_of_machine()
    if there < memory * GIB * 0.95:  # a machine sold as 4 GiB keeps some for its kernel
        raise ConfigError(
            f"there are {there / GIB:.1f} GiB of memory and {memory:g} GiB are needed: raise the limit of the "
            "container or, in Docker Desktop, Settings > Resources > Memory; or take a larger machine"
        )
    where = "a Redis of its own will be started"
    if settings.redis.host is not None:
        with connect(settings.redis, cluster):
            where = f"Redis at {settings.redis.host}:{settings.redis.port} takes the login"
    out.print(f"{there / GIB:.1f} GiB of memory, {where}", highlight=False)
