"""Verbs of the online way: deploy a bundle, serve it, ask for recommendations, send events."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..config import Settings
from ..errors import AcceptedError, StoreError
from .app import BEHIND, BUNDLE, Bundle_, Json, TakesIds, app, out, titles, until_ctrl_c
from .options import TRITON_CLIENT, TRITON_SERVER, options
from .tables import explained, ranked

if TYPE_CHECKING:
    import redis

WAIT_SECONDS = 5.0  # for an event to be applied


@app.command()
@options(
    "deploy", "redis", "data",
    prefixed=["batch.popular", "online.nearest", "online.topk", "online.allow", "online.deny"],
)  # fmt: skip
def deploy(
    settings: Settings,
    bundle: Bundle_ = BUNDLE,
    as_json: Json = False,
) -> None:
    """Write a bundle into Redis as a new generation, and switch to it at once when all of it is there."""
    from ..bundle.bundle import Bundle
    from ..online.deploy import deploy as run
    from ..store.connection import connect

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
@options("redis")
def event(
    settings: Settings,
    user: Annotated[str, typer.Argument(help=f"raw user id{BEHIND}")],
    item: Annotated[str, typer.Argument(help="raw item id")],
    kind: Annotated[str, typer.Argument(help="a word, such as click, view or purchase", metavar="TYPE")],
    wait: Annotated[bool, typer.Option("--wait", help="until the event is applied, at most 5 s")] = False,
    as_json: Json = False,
) -> None:
    """Hand over a live event: USER did TYPE with ITEM just now. Prints the event's id once it is accepted.

    Ends with 3 if the event is accepted and --wait fails: it is not known to be applied, or was put aside. An event
    that is accepted must not be sent again. With 1 it is not accepted, or Redis was lost before it said so.
    """
    from ..store.connection import connect
    from ..store.events import publish

    with connect(settings.redis) as client:
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
@options("deploy.models", "deploy.history", "deploy.feast", "redis", "data")
def consume(
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Apply live events until Ctrl-C. Several may run; one that dies leaves its events to the others or the next."""
    from ..online.consumer import Consumer
    from ..store.connection import connect

    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # what it waits for, on the error stream

    @contextmanager
    def consuming() -> Iterator[Consumer]:
        with connect(settings.redis) as client, Consumer(client, settings) as consumer:
            yield consumer

    with until_ctrl_c(consuming()) as consumer, out.status("waiting for events") as status:
        while True:
            time.sleep(0.2)
            status.update(f"{consumer.applied:,} events applied, {consumer.refused:,} put aside")
    if as_json:
        print(json.dumps({"applied": consumer.applied, "refused": consumer.refused}))
    else:
        out.print(f"{consumer.applied:,} events applied, {consumer.refused:,} put aside")


@app.command()
@options(
    "triton.partition", "triton.instances", "triton.max_batch", "triton.queue_delay", "triton.cache", "triton.alias",
    "triton.explain", *TRITON_SERVER, "online", "data",
    prefixed=["redis", "deploy.models", "deploy.history", "deploy.feast"],
)  # fmt: skip
def serve(
    settings: Settings,
    events: Annotated[bool, typer.Option(help="also apply live events, as 'recsys consume' does")] = True,
    wait: Annotated[bool, typer.Option("--wait", help="until something is deployed, instead of an error")] = False,
) -> None:
    """Serve the live deployment with Triton until Ctrl-C. Triton and its models are started again if they die."""
    from ..online.serving import serving

    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # restarts, on the error stream
    with until_ctrl_c(serving(settings, events, wait)) as triton:
        out.print(
            f"Triton serves 'recommender' at {triton.host}: gRPC {triton.grpc_port}, HTTP {triton.http_port}, metrics "
            f"{triton.metrics_port}; log in {triton.log}; Ctrl-C stops it",
            highlight=False,
        )
        triton.watch(threading.Event())


@app.command(cls=TakesIds)
@options(*TRITON_CLIENT)
def recommend(
    settings: Settings,
    users: Annotated[list[str], typer.Argument(help=f"raw user ids{BEHIND}")],
    explain: Annotated[bool, typer.Option("--explain", help="show where each item came from, and stage times")] = False,
    bundle: Annotated[Path | None, typer.Option(help="bundle folder with the items' labels")] = None,
    as_json: Json = False,
) -> None:
    """Ask Triton for recommendations now."""
    from ..online.recommender_client import Client

    with Client(settings.triton) as client:
        answers = client.recommend(users, explain)
    if as_json:
        print(json.dumps([asdict(answer) for answer in answers]))
        return
    labels = titles(bundle) if bundle is not None else {}
    for answer in answers:
        source = "popular items, degraded" if answer.degraded else f"generation {answer.generation}"
        out.print(ranked(f"user {answer.user} ({source})", answer.items, answer.scores, labels))
        if answer.explanations:
            out.print(explained(answer, labels))
            out.print(f"candidates: {', '.join(f'{count} {step}' for step, count in answer.funnel.items())}")
        if answer.stage_us:
            times = ", ".join(f"{stage} {us:,.0f}" for stage, us in answer.stage_us.items())
            out.print(f"microseconds: {times}; together {sum(answer.stage_us.values()):,.0f}", highlight=False)
