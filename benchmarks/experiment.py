"""Does the method hold? Methods x budgets x seeds on one project's data, equal steps, one table with intervals.

    python benchmarks/experiment.py PROJECT --out FOLDER [--budgets small medium] [--methods human_only vanilla ... sum]
        [--seeds 0 1 2] [--jobs 2] [--set finetune.optim.steps=120 ...]

PROJECT: a folder after stage check_labels (`make repro` leaves one): its params.yaml, manifest, labels, maps and
refinement module are used, nothing in it is written. Every run has a folder of its own below FOLDER/runs and is made
of `python -m sum finetune` and `python -m sum evaluate` with finetune.method, seed and the settings of --set;
what is done is not done again (unless settings, data or code have changed: that is refused), and a killed run goes on;
--jobs of them at once. For the budgets and methods of the call, FOLDER/table.csv and table.md hold,
for each task, budget and method, mIoU and boundary IoU after 1, 3 and 5 points and the difference to the base on the
same masks, means over seeds, with 95 % intervals over seeds and images (both drawn again with replacement);
curves-BUDGET.png draws the differences over all rounds.

Settings are chosen on validation scenes: a project whose `demo.seeds` has the numbers of val and test exchanged.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from sum.data.charts import curves
from sum.data.records import read_manifest
from sum.data.score_tables import of_game, read_rows
from sum.data.scores import METRICS, comparison_table
from sum.stages.common import code_hash
from sum.storage import sha256_file, write_json

METHODS = ("human_only", "vanilla", "mask_refinement", "sum_without_task_prompt", "sum")
SHARED = ("raw", "manifest", "validation", "refiner", "pseudo_labels", "uncertainty", "checks")
ROUNDS, TOLD = range(1, 7), (1, 3, 5)
RESAMPLES = 2000
MAIN_GAME = [
    f"evaluate.{name}" for name in ("prompts=[point]", "unspecified=false", "everything=false", "fidelity=false")
]
CODE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Run:
    """One training; no method: the base."""

    budget: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.budget}-{self.method}-{self.seed}" if self.method else "base"

    def commands(self) -> Iterator[list[str]]:
        if not self.method:
            yield ["evaluate", "base", *MAIN_GAME]
            return
        options = [f"finetune.method={self.method}", f"seed={self.seed}"]
        yield ["finetune", self.budget, *options]
        yield ["evaluate", self.budget, *options, *MAIN_GAME]


def make(run: Run, project: Path, out: Path, settings: Sequence[str]) -> Path:
    """Train and evaluate, unless that is done; returns the folder of the evaluation."""
    folder = out / "runs" / run.name
    done = folder / "data/evaluation" / (run.budget or "base")
    stamp(folder / "made_of.json", project, settings)
    if (done / "summary.json").is_file():
        return done
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        link = folder / "data" / name
        if not link.exists() and (project / "data" / name).exists():
            link.symlink_to((project / "data" / name).resolve())
    for name in ("params.yaml", "sum/models/weights", "work/photos", *photo_folders(project)):  # weights: two of these
        link = folder / name
        if not Path(os.path.normpath(link)).is_relative_to(out) and not Path(name).is_absolute():
            raise SystemExit(f"{name} would be linked outside of {out}: give the data sets roots that are absolute")
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists() and (project / name).exists():
            with suppress(FileExistsError):  # ../photos is that of all runs, and another may have been first
                link.symlink_to((project / name).resolve())
    environment = os.environ | {"PYTHONPATH": str(CODE), "MLFLOW_TRACKING_URI": f"sqlite:///{out}/mlflow.db"}
    for command in run.commands():
        print(f"{run.name}: {' '.join(command[:2])}", flush=True)
        with (folder / f"{command[0]}.log").open("w") as log:
            words = [sys.executable, "-m", "sum", *command, *settings]
            code = subprocess.run(words, cwd=folder, env=environment, stdout=log, stderr=log, check=False).returncode
        if code:
            raise SystemExit(f"{run.name}: `{' '.join(words[2:])}` ended with {code}, see {log.name}")
    return done


def stamp(path: Path, project: Path, settings: Sequence[str]) -> None:
    """Note what a run is made of. Raises SystemExit when it was begun with something else: it would pass for this."""
    inputs = ("params.yaml", "data/manifest/*.parquet", "data/refiner/*.safetensors", "data/*/summary.json")
    paths = [path for pattern in inputs for path in sorted(project.glob(pattern))]  # labels' summaries name their bytes
    files = {str(path.relative_to(project)): sha256_file(path) for path in paths}
    now = {"settings": [*settings], "code": code_hash(), **files}
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, now)
        return
    then = json.loads(path.read_text())
    other = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
    if other:
        raise SystemExit(
            f"{path.parent} was begun with other {', '.join(other)}: give another --out, or delete that folder"
        )


def photo_folders(project: Path) -> list[str]:
    """The folders of photos and archives, relative to the project as the manifest has them (../photos); outer first."""
    images = read_manifest(project / "data/manifest", reader="experiment").images
    paths = {image.path.partition("!/")[0] for image in images if "://" not in image.path}
    return sorted({str(Path(path).parent) for path in paths})


def games(folders: Sequence[Path]) -> list[pd.DataFrame]:
    """The rows of the game by points, a table a seed."""
    return [of_game(read_rows(folder, reader="experiment"), prompt="point") for folder in folders]


def shown(table: pd.DataFrame) -> str:
    """Markdown, per cent: a row a (budget, method), columns the tasks at 1, 3 and 5 points."""
    lines = []
    for metric, label in METRICS.items():
        part = table[(table["metric"] == metric) & table["round"].isin(TOLD)]
        heads = [(name, number) for name in part["name"].unique() for number in TOLD]
        lines += [f"**{label}**, per cent; in brackets the difference to the base with its 95 % interval", ""]
        lines += ["| budget | method | " + " | ".join(f"{task}, {n}" for task, n in heads) + " |"]
        lines += ["|---|---|" + "---:|" * len(heads)]
        for (budget, model), group in part.groupby(["budget", "model"], sort=False):
            cells = []
            for task, number in heads:
                row = group[(group["name"] == task) & (group["round"] == number)].iloc[0]
                gain = f" ({100 * row['gain']:+.1f}: {100 * row['gain_low']:+.1f} to {100 * row['gain_high']:+.1f})"
                cells.append(f"{100 * row['mean']:.1f}" + (gain if model != "base" else ""))
            lines.append(f"| {budget} | `{model}` | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budgets", nargs="+", default=["small", "medium"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--set", nargs="+", default=[], dest="settings", metavar="KEY=VALUE")
    options = parser.parse_args()
    out = options.out.resolve()
    finish = partial(make, project=options.project, out=out, settings=options.settings)
    base = games([finish(Run("", "", 0))])  # the first alone: it makes MLflow's tables
    groups = {
        (budget, method): [Run(budget, method, seed) for seed in options.seeds]
        for budget, method in itertools.product(options.budgets, options.methods)
    }
    every = list(itertools.chain(*groups.values()))
    with ThreadPoolExecutor(options.jobs) as pool:
        folders = dict(zip(every, pool.map(finish, every), strict=True))
    found = []
    for budget in options.budgets:
        rows = {method: games([folders[run] for run in runs]) for (of, method), runs in groups.items() if of == budget}
        table = comparison_table({"base": base[0], **rows}, rounds=ROUNDS, resamples=RESAMPLES)
        named = table["model"] == "base"
        found.append(table.assign(budget=np.where(named, "", budget))[~named if found else slice(None)])
    table = pd.concat(found, ignore_index=True)
    table = table[table["scope"] != "dataset"].fillna({"gain": 0.0, "gain_low": 0.0, "gain_high": 0.0})
    table.to_csv(out / "table.csv", index=False, float_format="%.6g")
    text = shown(table)
    (out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    for budget in options.budgets:
        chosen = table[table["budget"].isin(["", budget])]
        gains = chosen.assign(mean=chosen["gain"], low=chosen["gain_low"], high=chosen["gain_high"])
        (out / f"curves-{budget}.png").write_bytes(curves(gains, of="gain in "))


if __name__ == "__main__":
    main()
