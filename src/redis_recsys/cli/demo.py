"""``recsys demo``: everything on MovieLens-100k."""

from __future__ import annotations

import json

from ..config import Settings
from .app import Json, app, out, titles
from .options import options
from .tables import ranked, recommendations_table, show_report

SHOWN = 10  # items of a table


@app.command()
@options("data")
def demo(settings: Settings, as_json: Json = False) -> None:
    """The whole way on MovieLens-100k.

    Ahead of time: fetch, train, compare with baselines, write to Redis, read three users back. On demand: deploy,
    serve with Triton, recommend for three users, one of them views an item, recommend again. Stops what it started.
    """
    from ..demos.movielens_demo import offline, online
    from ..utils.environments import require

    require(settings.triton.environment, "recsys setup serving")
    report, found = offline(settings)
    if not as_json:
        labels = titles(settings.data / "demo" / "bundle")
        show_report(report)
        for each in found:
            out.print(recommendations_table(each, labels, SHOWN))
    live = online(settings)
    if as_json:
        offline_part = report.to_dict() | {"recommendations": [vars(each) for each in found]}
        online_part = {
            "deployment": vars(live.deployment),
            "before": [vars(answer) for answer in live.before],
            "viewed": live.viewed,
            "after": vars(live.after),
        }
        print(json.dumps(offline_part | {"online": online_part}, default=str))
        return
    for answer in live.before:
        title = f"user {answer.user}, on demand, generation {answer.generation}"
        out.print(ranked(title, answer.items[:SHOWN], answer.scores[:SHOWN], labels))
    answer = live.after
    title = f"user {answer.user}, after viewing {labels.get(str(live.viewed), live.viewed)}"
    out.print(ranked(title, answer.items[:SHOWN], answer.scores[:SHOWN], labels))
