"""Entry point of every process under torchrun: ``python -m redis_recsys.trainers.torchrec.worker JOB``.

Process 0 reports progress on standard output, one JSON object per line; everything else goes to standard error. On
several hosts, start ``torchrun --nnodes ... -m redis_recsys.trainers.torchrec.worker JOB`` on each, with the job and
its folders on a file system that all hosts share.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from ...errors import RecsysError, TrainingError, one_line
from ..worker_events import emit, take_over
from .job import Job


def main(path: Path) -> int:
    """Run one process of a job; report any failure as one line."""
    take_over()
    try:
        device = _device()
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        from .train import Trainer

        Trainer(Job.load(path), device, emit).run()
        dist.destroy_process_group()
    except RecsysError as error:
        emit("error", message=str(error), known=True)
        return 1
    except Exception as error:
        traceback.print_exc()
        emit("error", message=f"{type(error).__name__}: {one_line(error, 300)}", known=False)
        return 1
    return 0


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local = int(os.environ["LOCAL_RANK"])
    if local >= torch.cuda.device_count():
        raise TrainingError(
            f"there are {torch.cuda.device_count()} GPUs, fewer than processes: set --processes to their number"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


if __name__ == "__main__":
    # a failed process does not wait for the others, which cannot continue without it
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)
