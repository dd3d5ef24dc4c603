"""A look at the machine and at Redis before anything is started."""

from __future__ import annotations

from typing import Annotated

import typer

from ..config import RedisSettings, load_settings
from ..errors import ConfigError
from .app import app, out, setting

GIB = 1 << 30


@app.command()
def check(
    memory: Annotated[float, typer.Option(help="GiB of memory that are needed", min=0)] = 0,
    host: Annotated[str | None, setting(RedisSettings, "host")] = None,
    port: Annotated[int | None, setting(RedisSettings, "port")] = None,
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

    settings = load_settings(redis={"host": host, "port": port}).redis
    there = memory_of_machine()
    if there < memory * GIB * 0.95:  # a machine sold as 4 GiB keeps some for its kernel
        raise ConfigError(
            f"there are {there / GIB:.1f} GiB of memory and {memory:g} GiB are needed: raise the limit of the "
            "container or, in Docker Desktop, Settings > Resources > Memory; or take a larger machine"
        )
    where = "a Redis of its own will be started"
    if settings.host is not None:
        with connect(settings, cluster):
            where = f"Redis at {settings.host}:{settings.port} takes the login"
    out.print(f"{there / GIB:.1f} GiB of memory, {where}", highlight=False)
