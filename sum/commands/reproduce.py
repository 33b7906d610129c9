"""`python -m sum reproduce RUN_ID`: an MLflow run trained again with its own settings; are its weights the same?

It trains by stage finetune itself, below work/reproduce/RUN_ID: data/models and work/finetune are left alone. The
training is an MLflow run of its own, tagged `reproduces: RUN_ID`, without a logged model. When it was killed, the same
command goes on. It starts as many processes as trained the run, whatever SUM_PROCESSES says.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from sum.config import Config
    from sum.run_page import Page

WIDTH = 150  # columns of a file or pipe
OUTCOME = "reproduced"  # tag of the new run: identical | different


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind `reproduce`."""
    parser.add_argument("run_id", metavar="RUN_ID", help="of an MLflow run that stage finetune made")
    parser.add_argument("--check-only", action="store_true", help="say what differs from then; train nothing")
    parser.add_argument("--checked", action="store_true", help=argparse.SUPPRESS)  # in processes that this starts


def run(options: argparse.Namespace) -> str:
    """See the module. Raises DataError when data, labels or base weights are not those of the run, NotReproduced when
    other weights come out, ConfigError without such a run or enough GPUs, TrackingError without a server.
    """
    from sum.config import load_config
    from sum.run_page import AGAIN, read_page
    from sum.stages import finetune

    today = load_config()
    page = read_page(today.tracking.uri, options.run_id)
    config = own_config(page, today)
    place, alone = AGAIN / page.run_id, int(os.environ.get("RANK", "0")) == 0
    if not options.checked:
        check(page, config, today=today, place=place)
    if options.check_only:
        return f"data, labels and base weights are those of the run. Its settings and files: {place}\n" if alone else ""
    if "RANK" not in os.environ and int(page.machine["processes"]) > 1:
        command = own_processes(page, config)
        sys.stdout.flush()
        os.execv(command[0], command)  # noqa: S606 - no shell, a list of arguments
    with threads(int(page.machine["threads"])):
        folder = finetune.run(config, budget=page.facts["budget"], reproduces=page.run_id)
    if not alone:
        return ""
    shutil.rmtree(place / "work")  # its checkpoints are at the end: the next time it is trained again
    return verdict(page, folder, uri=today.tracking.uri)


def check(page: Page, config: Config, *, today: Config, place: Path) -> None:
    """Write the run's files to `place` and tell what differs, by the first process; raises DataError as `run`."""
    from sum.commands.reproduce_checks import differences, headline, mend, table
    from sum.errors import DataError

    found = differences(page, config, today=today)
    if int(os.environ.get("RANK", "0")) == 0:
        unpack(page, place)
        console = Console(width=None if sys.stdout.isatty() else WIDTH, markup=False, highlight=False)
        console.print(headline(page, found), soft_wrap=True)
        if found:
            console.print(table(found))
    refused = [difference for difference in found if difference.refuses]
    if refused:
        raise DataError(f"reproduce: run {page.run_id} was trained on something else. {mend(page, refused, place)}")


def own_processes(page: Page, config: Config) -> list[str]:
    """The command that trains in as many processes as the run had. Raises ConfigError where each wants a GPU of its own
    and there are fewer.
    """
    import torch

    from sum.errors import ConfigError
    from sum.launch import start
    from sum.stages.common import pick_device

    count, here = int(page.machine["processes"]), torch.cuda.device_count()
    if pick_device(config.device).type == "cuda" and here < count:
        raise ConfigError(
            f"reproduce: {count} processes trained run {page.run_id}, and this machine has {here} GPUs. Start `-m sum "
            f"reproduce {page.run_id}` by torchrun on several machines, as docs/training.md says for finetune"
        )
    return start(["reproduce", page.run_id, "--checked"], count=count)


def own_config(page: Page, today: Config) -> Config:
    """The run's own settings; the MLflow server, and a device where the run's is not there, are today's."""
    from sum.commands.use import check
    from sum.errors import ConfigError
    from sum.run_page import PARAMS
    from sum.stages.common import pick_device

    try:
        own = check(page.texts[PARAMS].encode(), source=f"params.yaml of run {page.run_id}")
    except ConfigError as error:
        commit = page.machine["git.commit"]
        raise ConfigError(f"{error}. Another version of this project made it: `git checkout {commit}`") from error
    try:
        pick_device(own.device)
    except ConfigError:
        own = replace(own, device="auto")
    return replace(own, tracking=today.tracking)


def unpack(page: Page, place: Path) -> None:
    """Write the settings, dvc.lock and uncommitted changes of the run to `place`."""
    from sum.storage import write_atomic

    for name, text in page.texts.items():
        write_atomic(place / name, text.encode())


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch has as many threads as the run had: sums are rounded in another order with another number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def verdict(page: Page, folder: Path, *, uri: str) -> str:
    """What came of it, which is also tagged to the new run; folder: its model. Raises NotReproduced."""
    from sum.errors import NotReproduced
    from sum.mlflow_client import connect
    from sum.models.distance import apart
    from sum.tracking import download_model, tag_run

    made = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    weights = folder / "model.safetensors"
    where = f"{weights}, MLflow run {made['run_id']}"
    same, lines = made["fingerprint"] == page.weights, [f"sha256 {page.weights}"]
    if not same:
        with TemporaryDirectory(prefix="sum-reproduce-") as scratch:
            files = download_model(connect(uri), page.model_id, folder=Path(scratch))
            logged = next((path for path in files if path.name == weights.name), None)
            same, lines = apart(logged, weights) if logged else (False, ["its weights are gone from MLflow"])
    tag_run(uri, made["run_id"], key=OUTCOME, value="identical" if same else "different")
    if same:
        return f"identical: the weights are those of run {page.run_id} ({'; '.join(lines)}). {where}\n"
    raise NotReproduced("\n".join([f"not identical: other weights than those of run {page.run_id}. {where}", *lines]))
