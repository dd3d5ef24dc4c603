"""``recsys user``: what is done with one user."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from ..config import Settings
from .app import BEHIND, Json, TakesIds, app, out
from .options import options

user = typer.Typer(help="Remove what Redis holds of a user.", no_args_is_help=True)
app.add_typer(user, name="user")


@user.callback()
def verbs() -> None:
    """Remove what Redis holds of a user."""


@user.command(cls=TakesIds)
@options("redis")
def forget(
    settings: Settings,
    raw_id: Annotated[str, typer.Argument(help=f"raw user id{BEHIND}", metavar="ID")],
    as_json: Json = False,
) -> None:
    """Remove all of one user from Redis: features, histories, counters, events, recommendations, Feast's rows.

    Deployments, batch runs and consumers may be at work meanwhile. Of the user a SHA-256 of the id stays, so that
    bundles which still hold the user's rows are deployed and scored without them. Files are not touched: bundles,
    datasets, logs and backups.
    """
    from ..store.connection import connect
    from ..store.users import forget as run

    with connect(settings.redis) as client:
        done = run(client, raw_id)
    if as_json:
        print(json.dumps({"user": raw_id} | asdict(done)))
        return
    out.print(
        f"removed from Redis: {done.keys:,} keys, {done.events:,} events that waited, {done.dead:,} put aside",
        highlight=False,
    )
    out.print(
        f"Files still hold the user: logs and datasets, the bundles made from them ({settings.deploy.models}, "
        f"{settings.data / 'feast'}), Redis' append-only file until BGREWRITEAOF, and backups. Take the user out "
        "of the log and train again; until then 'recsys deploy' and 'recsys batch' leave the user's rows out.",
        highlight=False,
    )
