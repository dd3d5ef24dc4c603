"""Quality of retrieval and ranking beside baselines: several moments, several seeds, paired over users.

    python -m benchmarks.offline.quality
    python -m benchmarks.offline.quality --only movielens-1m --movielens-1m /data/ml1m --seeds 2

MovieLens-100k is cut at several moments: each time, models and baselines learn what came before and are asked about
the tenth of all ratings that follows. The other sets are evaluated once. Models are trained once for each seed, and a
user's figures are the means over seeds; intervals draw users with all their moments. Each training is kept in
``data/bench/quality``, so that a run that was cut goes on where it stopped; ``--fresh`` measures everything again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer

from benchmarks.measure import FOLDER, in_child, machine
from benchmarks.report import into_page, markdown, picture
from redis_recsys.config import Settings
from redis_recsys.data.movielens import fetch
from redis_recsys.data.synthetic import generate, truth_of
from redis_recsys.data.tabular import read
from redis_recsys.dataset.encode import encode
from redis_recsys.dataset.interactions import Dataset
from redis_recsys.dataset.schema import Column, Schema
from redis_recsys.dataset.split import Split
from redis_recsys.errors import ConfigError
from redis_recsys.evaluation.comparison import Paired
from redis_recsys.evaluation.evaluate import IDEAL, TRUE, Report, evaluate
from redis_recsys.evaluation.metrics import title_of
from redis_recsys.evaluation.plots import metric_bars
from redis_recsys.offline.recommender import OURS, BundleRecommender
from redis_recsys.trainers.presets import movielens_training
from redis_recsys.utils.files import written_aside_file
from redis_recsys.utils.progress import step

RESULTS = Path("benchmarks/offline/results/quality.json")
WINDOW = 0.1  # share of all rows that each cut tests, and validates, on
METRICS = ("ndcg@10", "hit_rate@10", "recall@10", "mrr", "click_probability@10")
Values = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Data:
    """A data set of the benchmark.

    Attributes:
        name: name in files and flags.
        title: name in the tables.
        make: function that writes its raw folder.
        cuts: number of moments; 1 for a single evaluation by ``split``.
        split: division where there is a single evaluation.
        settings: settings of the training.
    """

    name: str
    title: str
    make: Callable[[Path], object]
    cuts: int
    split: Split
    settings: Settings


@dataclass(frozen=True)
class Piece:
    """Figures of one evaluation: of the baselines at a cut, or of the models of one seed there.

    Attributes:
        values: recommender -> metric -> float64[n].
        ids: raw ids of the n users.
        warm: bool[n], users with a history.
        chosen: settings of each baseline.
    """

    values: Values
    ids: np.ndarray
    warm: np.ndarray
    chosen: dict[str, Any]

    @classmethod
    def of(cls, report: Report, chosen: dict[str, Any]) -> Piece:
        """The figures of a report that this benchmark shows."""
        values = {name: {m: v for m, v in metrics.items() if m in METRICS} for name, metrics in report.by_user.items()}
        return cls(values, report.ids, report.members["warm"], chosen)

    def save(self, path: Path, key: str) -> None:
        """Write a file, whole or not at all; ``key`` says what was measured."""
        arrays: dict[str, Any] = {
            f"{name}|{metric}": v for name, metrics in self.values.items() for metric, v in metrics.items()
        }
        with written_aside_file(path) as aside, aside.open("wb") as file:
            ids = self.ids.astype(str)
            np.savez(
                file, key=np.array(key), chosen=np.array(json.dumps(self.chosen)), ids=ids, warm=self.warm, **arrays
            )

    @classmethod
    def load(cls, path: Path, key: str) -> Piece | None:
        """Read such a file; None if there is none, or if something else was measured."""
        if not path.exists():
            return None
        with np.load(path) as stored:
            if str(stored["key"]) != key:
                return None
            values: Values = {}
            for column in (name for name in stored.files if "|" in name):
                name, metric = column.split("|")
                values.setdefault(name, {})[metric] = stored[column]
            return cls(values, stored["ids"], stored["warm"], json.loads(str(stored["chosen"])))


def main(
    cuts: Annotated[int, typer.Option(min=1, max=7, help="moments at which MovieLens-100k is cut")] = 6,
    seeds: Annotated[int, typer.Option(min=1, help="trainings at each cut")] = 3,
    rows: Annotated[int, typer.Option(min=1000, help="synthetic rows")] = 1_000_000,
    movielens_1m: Annotated[
        str | None,
        typer.Option(help="also MovieLens-1M: 'download', or a folder with {log,users,items}.parquet and schema.yaml"),
    ] = None,
    sports: Annotated[
        Path | None, typer.Option(help="also Sports_and_Outdoors.txt of salesforce/ICLRec: lines 'user item item ...'")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="only the data set of this name; may be repeated")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="most epochs, for a quick look; nothing is published")
    ] = None,
    fresh: Annotated[bool, typer.Option(help="measure everything again")] = False,
) -> None:
    """Measure one data set after the other, and publish the tables and plots on the benchmarks page."""
    sets = data_sets(cuts, rows, movielens_1m, sports, epochs)
    unknown = sorted(set(only or ()) - {each.name for each in sets})
    if unknown:
        raise ConfigError(f"no data set {unknown[0]!r} here: {', '.join(each.name for each in sets)}")
    results = stored()
    for data in (each for each in sets if not only or each.name in only):
        figures = measure(data, range(42, 42 + seeds), fresh) | {"machine": machine()}
        if epochs:
            print(json.dumps(figures, indent=2))
        else:
            results[data.name] = figures
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
            plot(figures)
    print(tables(results))
    into_page("quality", tables(results))


def data_sets(
    cuts: int, rows: int, movielens_1m: str | None = None, sports: Path | None = None, epochs: int | None = None
) -> list[Data]:
    """The data sets to measure; those that must be brought along only if they were."""
    settings, last = Settings(), Split(by="last", valid=1, test=1)
    if epochs:
        settings = settings.changed("train", epochs=epochs)
    movielens = settings.model_copy(update={"train": movielens_training(settings)})
    downloads = settings.data / "downloads"
    sets = [
        Data("movielens-100k", "MovieLens-100k", lambda raw: fetch(raw, "100k", downloads), cuts, Split(), movielens),
        Data("synthetic", f"Synthetic, {rows:,} rows", lambda raw: generate(raw, rows), 1, Split(), settings),
    ]
    if movielens_1m == "download":
        sets.append(Data("movielens-1m", "MovieLens-1M", lambda raw: fetch(raw, "1m", downloads), 1, last, settings))
    elif movielens_1m:
        path = Path(movielens_1m)
        tables = [path / name for name in ("log.parquet", "schema.yaml", "users.parquet", "items.parquet")]

        def make(raw: Path) -> None:
            read(tables[0], tables[1], raw, tables[2], tables[3])

        sets.append(Data("movielens-1m", "MovieLens-1M", make, 1, last, settings))
    if sports:
        sets.append(Data("sports", "Sports and Outdoors", lambda raw: from_lines(sports, raw), 1, last, settings))
    return sets


def from_lines(source: Path, raw: Path) -> None:
    """Write a raw folder of a text with a line for each user: the user's id, then items, oldest first."""
    lines = [line.split() for line in source.read_text().splitlines() if line.strip()]
    users = [line[0] for line in lines for _ in line[1:]]
    items = [item for line in lines for item in line[1:]]
    (raw / "interactions").mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"user_id": users, "item_id": items}).write_parquet(raw / "interactions" / "part-00000.parquet")
    columns = [
        Column(name="user_id", side="user", kind="categorical", role="id"),
        Column(name="recent_items", side="user", kind="multi-categorical", role="history", max_length=20),
        Column(name="item_id", side="item", kind="categorical", role="id"),
    ]
    Schema(name=source.stem, columns=columns).save(raw / "schema.yaml")


def cut(raw: Path, target: Path, number: int, cuts: int) -> Split:
    """Write the raw folder of what happened until the end of a cut, and return its split.

    The last of the cuts ends with the newest row; each one tests on the ``WINDOW`` of all rows before its end, so that
    no row is tested twice, and validates on the one before that.

    Args:
        raw: raw folder, with times.
        target: raw folder to write.
        number: number of the cut, from 0.
        cuts: number of cuts.
    """
    time = Schema.load(raw / "schema.yaml").time
    assert time is not None
    rows = pl.read_parquet(raw / "interactions" / "*.parquet")
    share = 1 - WINDOW * (cuts - 1 - number)
    moments = rows[time.name].sort()
    if share < 1:
        rows = rows.filter(pl.col(time.name) < moments[int(len(moments) * share)])
    (target / "interactions").mkdir(parents=True)
    for path in raw.glob("*.*"):
        shutil.copy(path, target)
    rows.write_parquet(target / "interactions" / "part-00000.parquet")
    return Split(valid=WINDOW / share, test=WINDOW / share)


def measure(data: Data, seeds: Sequence[int], fresh: bool = False) -> dict[str, Any]:
    """Measure the baselines at each cut, and the models for each seed there; what was measured before is kept."""
    home = FOLDER / "quality" / data.name
    if fresh:
        shutil.rmtree(home, ignore_errors=True)
    baselines, models = [], []
    for number in range(data.cuts):
        place = prepared(data, home, number)
        label = f"{data.title}, cut {number + 1} of {data.cuts}"
        baselines.append(_piece(place, "baselines", f"{label}: baselines", None))
        each_seed = ((seed, data.settings.changed("train", seed=seed)) for seed in seeds)
        models.append(
            [_piece(place, f"seed-{seed}", f"{label}: seed {seed}", settings) for seed, settings in each_seed]
        )
    return summary(data.title, baselines, models, seeds)


def prepared(data: Data, home: Path, number: int) -> Path:
    """Folder of a cut, with ``dataset/`` in it, made unless it is there."""
    raw, place = home / "raw", home / f"cut-{number + 1}-of-{data.cuts}"
    if not raw.exists():
        data.make(raw)
    if not (place / "dataset").exists():
        here, split = raw, data.split
        if data.cuts > 1:
            here = place / "raw"
            shutil.rmtree(here, ignore_errors=True)
            split = cut(raw, here, number, data.cuts)
        encode(here, place / "dataset", split)
    return place


def _piece(place: Path, name: str, label: str, settings: Settings | None) -> Piece:
    """The figures of the baselines, or of models with some settings, measured now unless they have been before."""
    path = place / f"{name}.npz"
    described = settings.train.model_dump(mode="json") if settings else None
    key = json.dumps([Dataset(place / "dataset").fingerprint, described])
    found = Piece.load(path, key)
    if found is None:
        with step(label):
            in_child(_measure, place, path, key, settings)
        found = Piece.load(path, key)
    assert found is not None
    return found


def _measure(place: Path, path: Path, key: str, settings: Settings | None) -> dict[str, Any]:
    from redis_recsys.evaluation.baselines import fit_baselines
    from redis_recsys.trainers.training import train

    dataset = Dataset(place / "dataset")
    truth = truth_of(place / "raw") or truth_of(place.parent / "raw")
    if settings is None:
        baselines = fit_baselines(dataset)
        chosen = {each.name: each.settings for each in baselines}
        Piece.of(evaluate(dataset, baselines, truth=truth), chosen).save(path, key)
        return {}
    bundle = train(dataset, settings, place / "bundle")
    towers, both = (BundleRecommender(bundle, dataset, settings.batch.candidates, ranked) for ranked in (False, True))
    Piece.of(evaluate(dataset, [towers, both], retrieval=towers, truth=truth), {}).save(path, key)
    return {}


def summary(
    title: str, baselines: Sequence[Piece], models: Sequence[Sequence[Piece]], seeds: Sequence[int]
) -> dict[str, Any]:
    """Figures of a data set from its pieces.

    Args:
        title: name of the data set.
        baselines: figures of the baselines at each cut.
        models: figures of the models at each cut, one for each seed.
        seeds: the seeds.

    Returns:
        ``windows`` (users at a cut) and ``users`` (different ones) of each group; ``means``: group -> recommender ->
        metric -> mean, ``<metric>_low``, ``<metric>_high``; ``best``, the best baseline; ``differences``: group ->
        recommender -> other -> mean, low and high of the NDCG@10 difference to the towers and to the best baseline;
        ``cuts`` and ``seeds``: the models' NDCG@10 at each cut and for each seed; ``chosen``: settings of the
        baselines at each cut.
    """
    cuts = [
        base.values | _mean([piece.values for piece in of_seeds])
        for base, of_seeds in zip(baselines, models, strict=True)
    ]
    names = sorted(cuts[0], key=(TRUE, IDEAL).__contains__)  # ceilings last
    values = {name: {m: np.concatenate([cut[name][m] for cut in cuts]) for m in cuts[0][name]} for name in names}
    ids, warm = (np.concatenate([getattr(piece, field) for piece in baselines]) for field in ("ids", "warm"))
    members = {group: which for group, which in (("all", warm | True), ("warm", warm), ("cold", ~warm)) if which.any()}
    paired = {
        group: Paired({name: {m: v[which] for m, v in metrics.items()} for name, metrics in values.items()}, ids[which])
        for group, which in members.items()
    }
    best = max(set(baselines[0].values) - {TRUE}, key=lambda name: paired["all"].mean(name, "ndcg@10"))

    def difference(group: str, other: str, name: str) -> list[float]:
        found = paired[group].compare(other, name)
        return [found.difference, found.low, found.high]

    others = (OURS[0], best)
    ndcg = {"towers": OURS[0], "ranked": OURS[1], "best baseline": best}
    return {
        "title": title,
        "windows": {group: int(which.sum()) for group, which in members.items()},
        "users": {group: of.users for group, of in paired.items()},
        "best": best,
        "means": {group: {name: _means(of, name, values[name]) for name in values} for group, of in paired.items()},
        "differences": {
            group: {
                name: {other: difference(group, other, name) for other in others if other != name} for name in values
            }
            for group in paired
        },
        "cuts": [{kind: float(cut[name]["ndcg@10"].mean()) for kind, name in ndcg.items()} for cut in cuts],
        "seeds": {
            str(seed): {
                name: float(np.concatenate([pieces[at].values[name]["ndcg@10"] for pieces in models]).mean())
                for name in OURS
            }
            for at, seed in enumerate(seeds)
        },
        "chosen": [piece.chosen for piece in baselines],
    }


def _mean(seeds: Sequence[Values]) -> Values:
    """Means over seeds of each user's values."""
    return {name: {m: np.mean([seed[name][m] for seed in seeds], axis=0) for m in seeds[0][name]} for name in seeds[0]}


def _means(paired: Paired, name: str, metrics: Sequence[str] | dict[str, np.ndarray]) -> dict[str, float]:
    means: dict[str, float] = {}
    for metric in metrics:
        low, high = paired.interval(name, metric)
        means |= {metric: paired.mean(name, metric), f"{metric}_low": low, f"{metric}_high": high}
    return means


def stored() -> dict[str, Any]:
    """The figures that were published, by data set."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def plot(figures: dict[str, Any], folder: Path = Path("assets")) -> None:
    """Draw the recommenders of a data set with their intervals."""
    means = {name: values for name, values in figures["means"]["all"].items() if name not in (IDEAL, TRUE)}
    metric_bars(
        means, figures["windows"]["all"], OURS, ("ndcg@10", "hit_rate@10", "mrr"), path=picture_of(figures, folder)
    )


def picture_of(figures: dict[str, Any], folder: Path = Path("assets")) -> Path:
    """Path of a data set's picture."""
    return folder / f"quality-{figures['title'].split(',')[0].lower().replace(' ', '-')}-intervals.png"


def tables(results: dict[str, Any]) -> str:
    """Render the results as Markdown."""
    if not results:
        return "No results are stored: `make bench-quality` measures them, which takes hours."
    return "\n\n".join(_table(figures) for figures in results.values())


def _table(figures: dict[str, Any]) -> str:
    here, means, best = figures["machine"], figures["means"], figures["best"]
    groups = [group for group in ("warm", "cold") if group in means]
    metrics = [m for m in ("hit_rate@10", "click_probability@10") if m in means["all"][OURS[0]]]
    headings = ["recommender", "NDCG@10", "minus two-tower", f"minus {best}", *(f"{group} NDCG@10" for group in groups)]
    rows = []
    for name, of in means["all"].items():
        apart = [figures["differences"]["all"][name].get(other) for other in (OURS[0], best)]
        rows.append(
            [
                f"**{name}**" if name in OURS else name,
                _cell([of[f"ndcg@10{end}"] for end in ("", "_low", "_high")]),
                *("" if each is None else _cell(each, "+") for each in apart),
                *(_cell([means[group][name][f"ndcg@10{end}"] for end in ("", "_low", "_high")]) for group in groups),
                *(f"{of[m]:.3f}" if m in of else "" for m in metrics),
            ]
        )
    cuts, seeds = figures["cuts"], figures["seeds"]
    counts = ", ".join(f"{figures['windows'][group]:,} {group}" for group in groups)
    gains = [each["ranked"] - each["towers"] for each in cuts]
    spread = "; ".join(
        f"{name} {min(values):.3f} to {max(values):.3f}"
        for name, values in ((name, [of[name] for of in seeds.values()]) for name in OURS)
    )
    lines = [
        f"**{figures['title']}**: {figures['windows']['all']:,} evaluations of {figures['users']['all']:,} users "
        f"({counts}), {len(cuts)} {'cuts' if len(cuts) > 1 else 'cut'}, seeds {', '.join(seeds)}, on "
        f"{here['processor']}, {here['cores']} cores. NDCG@10 by seed: {spread}. What the ranker adds, by cut: "
        f"{', '.join(f'{gain:+.4f}' for gain in gains)}.",
        "",
        *markdown([*headings, *(title_of(metric) for metric in metrics)], rows),
        "",
        picture(f"Quality on {figures['title']}, with 95% intervals", picture_of(figures)),
    ]
    return "\n".join(lines)


def _cell(figures: Sequence[float], sign: str = "") -> str:
    mean, low, high = (f"{value:{sign}.4f}" for value in figures)
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    typer.run(main)
