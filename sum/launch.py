"""One command, all GPUs of a machine: with SUM_PROCESSES a stage that can be shared starts itself under torchrun.

So `dvc repro`, a Prefect deployment and the shell start the same command whatever the machine has.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from sum.errors import ConfigError

VARIABLE = "SUM_PROCESSES"  # how many processes, or `gpu`: one a GPU
SHARED = ("finetune", "pseudo_label", "uncertainty")


def torchrun(words: Sequence[str], environment: Mapping[str, str]) -> list[str] | None:
    """The command that runs `python -m sum WORDS` in several processes; None where this process is to do it itself.

    Raises ConfigError for a number of processes that is none.
    """
    wanted = environment.get(VARIABLE, "")
    stage = next((word for word in words if not word.startswith("-")), None)
    if stage not in SHARED or wanted in ("", "1") or "RANK" in environment or {"-h", "--help"} & {*words}:
        return None
    if wanted != "gpu" and not (wanted.isascii() and wanted.isdigit() and int(wanted)):
        raise ConfigError(f"{VARIABLE} is '{wanted}', wants a number of processes such as 8, or gpu: one a GPU.")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={wanted}"]
    return [*start, "-m", "sum", *words]
