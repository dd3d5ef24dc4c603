"""Interrupt commands at moments drawn at random, and print how long each took to end.

    python -m tests.interrupts_at_random --times 100
    python -m tests.interrupts_at_random --times 20 deploy "real, dlrm serve"

The times are of a machine that has nothing else to do. Ends with 1 if a command took longer than a second, ended in
another way than it should, or left a process or half of an output.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from random import Random

from redis_recsys.data.criteo.generate import generate
from tests.support.interrupts import (
    Kind,
    SilentServer,
    by_hanging,
    by_silence,
    dlrm_model,
    hanging,
    interrupt,
    leftovers,
    with_servers,
)
from tests.support.planted import planted_dataset, trained_on


def measure(name: str, kind: Kind, times: int, limit: float, random: Random) -> int:
    """Interrupt one command many times; prints one line, and one per fault, and returns how many these are."""
    seconds, faults = [], []
    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            ended = interrupt(kind, Path(folder), random)
            left = leftovers(Path(folder))
        if ended.seconds is not None:
            seconds.append(ended.seconds)
        fault = ended.fault(kind, limit) or (f"left {left}" if left else None)
        if fault is not None:
            faults.append(f"    after {ended.after:.3f} s: {fault}")
    median, longest = (statistics.median(seconds), max(seconds)) if seconds else (0.0, 0.0)
    early = times - len(seconds)
    print(f"{name:<28} {len(seconds):>4} interrupted, {early:>3} had ended: {median:.2f} s, at most {longest:.2f} s")
    print("\n".join(faults), end="\n" if faults else "", flush=True)
    return len(faults)


def main() -> int:
    """Measure the chosen kinds of commands, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--limit", type=float, default=1.0, help="seconds that a command may take to end")
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("names", nargs="*", help="of kinds; default: all")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, SilentServer() as server:
        folder = Path(scratch)
        trained, ps = trained_on(planted_dataset(folder), folder / "bundle"), dlrm_model(folder)
        bundle, dataset = trained.bundle.path, trained.dataset.path
        generate(folder / "criteo", 20_000)
        kinds: Mapping[str, Kind] = {
            **by_silence(server.port, bundle, ps),
            **{f"hanging, {name}": kind for name, kind in by_hanging(hanging(folder / "env"), dataset, ps).items()},
            **{f"real, {name}": kind for name, kind in with_servers(bundle, dataset, folder / "criteo", ps).items()},
        }
        random = Random(chosen.seed)
        names = chosen.names or list(kinds)
        return int(sum(measure(name, kinds[name], chosen.times, chosen.limit, random) for name in names) > 0)


if __name__ == "__main__":
    sys.exit(main())
