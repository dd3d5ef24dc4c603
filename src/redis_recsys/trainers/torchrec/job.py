"""Job of the training processes: plain data in a JSON file that every process reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ...config import DlrmSettings


@dataclass(frozen=True)
class Job:
    """Training and export of a DLRM.

    Attributes:
        dataset: folder of the Criteo dataset.
        out: folder to write in HugeCTR's layout.
        checkpoints: folder for checkpoints, which every process can reach.
        settings: training settings.
    """

    dataset: Path
    out: Path
    checkpoints: Path
    settings: DlrmSettings

    def save(self, path: Path) -> None:
        """Write the job."""
        folders = {name: str(getattr(self, name).absolute()) for name in ("dataset", "out", "checkpoints")}
        path.write_text(json.dumps(folders | {"settings": self.settings.model_dump(mode="json")}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> Job:
        """Read a job."""
        document = json.loads(path.read_text())
        settings = DlrmSettings.model_validate(document.pop("settings"))
        return cls(**{name: Path(folder) for name, folder in document.items()}, settings=settings)
