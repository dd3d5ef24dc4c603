"""``recsys dlrm``: DLRM with tables larger than one device."""

from __future__ import annotations

import typer

from .app import app

dlrm = typer.Typer(help="DLRM with embedding tables larger than one device, HugeCTR-compatible.", no_args_is_help=True)
app.add_typer(dlrm, name="dlrm")
