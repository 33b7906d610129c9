"""One command, all GPUs of a machine: with SUM_PROCESSES a stage that can be shared starts itself under torchrun.

So `dvc repro`, a Prefect deployment and the shell start the same command whatever the machine has.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from sum.errors import ConfigError

VARIABLE = "SUM_PROCESSES"  # how many processes, or `gpu`: one a GPU
SHARED = ("finetune", "pseudo_label", "uncertainty", "evaluate")


def torchrun(words: Sequence[str], environment: Mapping[str, str]) -> list[str] | None:
    """The command that runs `python -m sum WORDS` in several processes; None where this process is to do it itself.

    Raises as `processes`.
    """
    stage = next((word for word in words if not word.startswith("-")), None)
    if stage not in SHARED or "RANK" in environment or {"-h", "--help"} & {*words}:
        return None
    count = processes(environment)
    return start(words, count=count) if count > 1 else None


def processes(environment: Mapping[str, str]) -> int:
    """How many processes VARIABLE asks for; 1 without it.

    Raises ConfigError for a number of processes that is none, and for `gpu` where there is none.
    """
    wanted = environment.get(VARIABLE, "") or "1"
    if wanted == "gpu":
        import torch

        if not torch.cuda.device_count():
            raise ConfigError(
                f"{VARIABLE} is 'gpu', but PyTorch finds no CUDA device here. Give a number of processes, which then "
                "share the CPU, or leave it out."
            )
        return torch.cuda.device_count()
    if not (wanted.isascii() and wanted.isdigit() and int(wanted)):
        raise ConfigError(f"{VARIABLE} is '{wanted}', wants a number of processes such as 8, or gpu: one a GPU.")
    return int(wanted)


def start(words: Sequence[str], *, count: int) -> list[str]:
    """The command that runs `python -m sum WORDS` in `count` processes of this machine."""
    alone = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return [*alone, "-m", "sum", *words]


def images_each(images_per_batch: int, *, count: int) -> int:
    """How many images of a batch each of `count` processes has.

    Raises ConfigError where they cannot be shared out evenly: unequal shares would weigh images unequally.
    """
    if images_per_batch % count:
        raise ConfigError(
            f"params.yaml: optim.images_per_batch is {images_per_batch}, no multiple of the {count} processes "
            f"that share a batch. Change it, or the number of processes ({VARIABLE}, torchrun)."
        )
    return images_per_batch // count
