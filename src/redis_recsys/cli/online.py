"""Verbs of the online way: deploy a bundle, serve it, ask for recommendations, send events."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ..config import DeploySettings, OnlineSettings, RedisSettings, TritonSettings, load_settings
from ..errors import AcceptedError, StoreError
from .app import BEHIND, BUNDLE, Bundle_, Json, TakesIds, app, out, ranked, setting, titles

if TYPE_CHECKING:
    import redis

    from ..online.recommender_client import Answer

WAIT_SECONDS = 5.0  # for an event to be applied


@app.command()
def deploy(
    bundle: Bundle_ = BUNDLE,
    models: Annotated[Path | None, setting(DeploySettings, "models")] = None,
    feast: Annotated[bool | None, setting(DeploySettings, "feast")] = None,
    recall: Annotated[float | None, setting(DeploySettings, "recall")] = None,
    history: Annotated[int | None, setting(DeploySettings, "history")] = None,
    grace: Annotated[int | None, setting(DeploySettings, "grace")] = None,
    host: Annotated[str | None, setting(RedisSettings, "host")] = None,
    port: Annotated[int | None, setting(RedisSettings, "port")] = None,
    as_json: Json = False,
) -> None:
    """Write a bundle into Redis as a new generation, and switch to it at once when all of it is there."""
    from ..bundle.bundle import Bundle
    from ..online.deploy import deploy as run
    from ..store.connection import connect

    flags = {name: value for name, value in locals().items() if name in DeploySettings.model_fields}
    settings = load_settings(deploy=flags, redis={"host": host, "port": port})
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # values that no item has, on the error stream
    opened = Bundle(bundle, verify=False)  # it is verified where it is copied
    with connect(settings.redis) as client:
        report = run(opened, client, settings)
    if as_json:
        print(json.dumps(asdict(report)))
        return
    out.print(
        f"generation {report.generation} is live: {report.users:,} users, {report.items:,} items, "
        f"live events of {report.replayed:,} users\nrecall@{report.neighbours} {report.recall:.4f} at EF {report.ef}",
        highlight=False,
    )
    out.print(", ".join(f"{step} {seconds:.1f} s" for step, seconds in report.seconds.items()), highlight=False)


@app.command(cls=TakesIds)
def event(
    user: Annotated[str, typer.Argument(help=f"raw user id{BEHIND}")],
    item: Annotated[str, typer.Argument(help="raw item id")],
    kind: Annotated[str, typer.Argument(help="a word, such as click, view or purchase", metavar="TYPE")],
    wait: Annotated[bool, typer.Option("--wait", help="until the event is applied, at most 5 s")] = False,
    host: Annotated[str | None, setting(RedisSettings, "host")] = None,
    port: Annotated[int | None, setting(RedisSettings, "port")] = None,
    as_json: Json = False,
) -> None:
    """Hand over a live event: USER did TYPE with ITEM just now. Prints the event's id once it is accepted.

    Ends with 3 if the event is accepted and --wait fails: it is not known to be applied, or was put aside. An event
    that is accepted must not be sent again. With 1 it is not accepted, or Redis was lost before it said so.
    """
    from ..store.connection import connect
    from ..store.events import publish

    with connect(load_settings(redis={"host": host, "port": port}).redis) as client:
        name, state = publish(client, user, item, kind), "accepted"
        if not as_json:
            print(name, flush=True)
        try:
            if wait:
                _await(client, name)
                state = "applied"
        finally:  # whatever the wait comes to, even Ctrl-C
            if as_json:
                print(json.dumps({"id": name, "state": state}), flush=True)


def _await(client: redis.Redis, name: str) -> None:
    """Return once an event is applied.

    Raises:
        AcceptedError: it is not, or nobody can tell.
    """
    from ..store.events import refusal, settled_within

    accepted = f"event {name} is accepted, do not send it again"
    try:
        settled = settled_within(client, name, WAIT_SECONDS)
        reason = refusal(client, name) if settled else None
    except StoreError as error:
        raise AcceptedError(f"{accepted}; waiting for it failed: {error}") from error
    if not settled:
        raise AcceptedError(
            f"{accepted}; it was not applied within {WAIT_SECONDS:.0f} s and will be as soon as 'recsys consume' runs "
            "without trouble"
        )
    if reason is not None:
        raise AcceptedError(f"{accepted}; it was put aside and changes nothing: {reason}")


@app.command()
def consume(
    models: Annotated[Path | None, setting(DeploySettings, "models")] = None,
    history: Annotated[int | None, setting(DeploySettings, "history")] = None,
    feast: Annotated[bool | None, setting(DeploySettings, "feast")] = None,
    host: Annotated[str | None, setting(RedisSettings, "host")] = None,
    port: Annotated[int | None, setting(RedisSettings, "port")] = None,
    as_json: Json = False,
) -> None:
    """Apply live events until Ctrl-C. Several may run; one that dies leaves its events to the others or the next."""
    from ..online.consumer import Consumer
    from ..store.connection import connect

    flags = {name: value for name, value in locals().items() if name in DeploySettings.model_fields}
    settings = load_settings(deploy=flags, redis={"host": host, "port": port})
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # what it waits for, on the error stream
    with (
        connect(settings.redis) as client,
        Consumer(client, settings) as consumer,
        suppress(KeyboardInterrupt),
        out.status("waiting for events") as status,
    ):
        while True:
            time.sleep(0.2)
            status.update(f"{consumer.applied:,} events applied, {consumer.refused:,} put aside")
    if as_json:
        print(json.dumps({"applied": consumer.applied, "refused": consumer.refused}))
    else:
        out.print(f"{consumer.applied:,} events applied, {consumer.refused:,} put aside")


@app.command()
def serve(
    partition: Annotated[str | None, setting(TritonSettings, "partition")] = None,
    instances: Annotated[int | None, setting(TritonSettings, "instances")] = None,
    max_batch: Annotated[int | None, setting(TritonSettings, "max_batch")] = None,
    queue_delay: Annotated[int | None, setting(TritonSettings, "queue_delay")] = None,
    cache: Annotated[bool | None, setting(TritonSettings, "cache")] = None,
    explain: Annotated[bool | None, setting(TritonSettings, "explain")] = None,
    address: Annotated[str | None, setting(TritonSettings, "address")] = None,
    grpc_port: Annotated[int | None, setting(TritonSettings, "grpc_port")] = None,
    http_port: Annotated[int | None, setting(TritonSettings, "http_port")] = None,
    metrics_port: Annotated[int | None, setting(TritonSettings, "metrics_port")] = None,
    retrieval: Annotated[str | None, setting(OnlineSettings, "retrieval")] = None,
    temperature: Annotated[float | None, setting(OnlineSettings, "temperature")] = None,
    events: Annotated[bool, typer.Option(help="also apply live events, as 'recsys consume' does")] = True,
    wait: Annotated[bool, typer.Option("--wait", help="until something is deployed, instead of an error")] = False,
) -> None:
    """Serve the live deployment with Triton until Ctrl-C. Triton and its models are started again if they die."""
    from ..online.serving import serving

    flags = dict(locals())
    settings = load_settings(
        **{
            section: {name: value for name, value in flags.items() if name in model.model_fields}
            for section, model in (("triton", TritonSettings), ("online", OnlineSettings))
        }
    )
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # restarts, on the error stream
    with suppress(KeyboardInterrupt), serving(settings, events, wait) as triton:
        out.print(
            f"Triton serves 'recommender' at {triton.host}: gRPC {triton.grpc_port}, HTTP {triton.http_port}, metrics "
            f"{triton.metrics_port}; log in {triton.log}; Ctrl-C stops it",
            highlight=False,
        )
        triton.watch(threading.Event())


@app.command(cls=TakesIds)
def recommend(
    users: Annotated[list[str], typer.Argument(help=f"raw user ids{BEHIND}")],
    explain: Annotated[bool, typer.Option("--explain", help="show where each item came from, and stage times")] = False,
    bundle: Annotated[Path | None, typer.Option(help="bundle folder with the items' labels")] = None,
    host: Annotated[str | None, setting(TritonSettings, "host")] = None,
    grpc_port: Annotated[int | None, setting(TritonSettings, "grpc_port")] = None,
    as_json: Json = False,
) -> None:
    """Ask Triton for recommendations now."""
    from ..online.recommender_client import Client

    with Client(load_settings(triton={"host": host, "grpc_port": grpc_port}).triton) as client:
        answers = client.recommend(users, explain)
    if as_json:
        print(json.dumps([asdict(answer) for answer in answers]))
        return
    labels = titles(bundle) if bundle is not None else {}
    for answer in answers:
        source = "popular items, degraded" if answer.degraded else f"generation {answer.generation}"
        out.print(ranked(f"user {answer.user} ({source})", answer.items, answer.scores, labels))
        if answer.explanations:
            out.print(_explained(answer, labels))
            out.print(f"candidates: {', '.join(f'{count} {step}' for step, count in answer.funnel.items())}")
        if answer.stage_us:
            times = ", ".join(f"{stage} {us:,.0f}" for stage, us in answer.stage_us.items())
            out.print(f"microseconds: {times}; together {sum(answer.stage_us.values()):,.0f}", highlight=False)


def _explained(answer: Answer, labels: dict[str, str]) -> Table:
    """The sources and ranks of each shown item."""
    table = Table()
    for name in ("#", "item", *(["label"] if labels else []), "sources", "similarity", "rank", "score", "rank"):
        table.add_column(name)
    for each in answer.explanations:
        label = [labels.get(str(each.item), "")] if labels else []
        row = (each.position, each.item, *label, ", ".join(each.sources), f"{each.similarity:.3f}", each.candidate)
        table.add_row(*(Text(f"{cell}") for cell in (*row, f"{each.score:.4g}", each.ranked)))
    return table
