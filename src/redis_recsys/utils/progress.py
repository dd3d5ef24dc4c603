"""Progress bars on stderr for long work; silent where nobody watches (a pipe, CI, ``--json``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(stderr=True)


@contextmanager
def progress(description: str, total: int | None = None, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; call the yielded function with the number of units (rows, bytes) just done.

    Example:
        >>> with progress("writing users", total=2) as advance:
        ...     advance(2)
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=False, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield lambda units: bar.advance(task, units)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Show the name of a step and, at its end, the time it took."""
    console.print(f"[bold]{name}[/]", highlight=False)
    started = time.perf_counter()
    yield
    console.print(f"     {time.perf_counter() - started:.1f} s", highlight=False)
