"""`python -m sum ablate`: the grid of params.yaml's `ablation` trained, evaluated and laid side by side.

Runs have folders of their own below FOLDER/runs: data/, work/ and MLflow's registered models are left alone. What is
done is not done again, what was killed goes on, what fails does not stop the others. See docs/ablation.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sum.ablation import Row
    from sum.commands.ablate_inputs import Plan
    from sum.config import Config

log = logging.getLogger(__name__)
OUT = Path("work/ablation")
PARAMS = Path("params.yaml")
SUFFIX = "-ablation"  # of MLflow's experiment
STATES = {"new": "to do", "begun": "goes on", "done": "done", "other": "begun with something else"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind `ablate`."""
    parser.add_argument("words", nargs="*", metavar="key=value", help="numbers of params.yaml, for every row")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help=f"folder of runs and tables ({OUT})")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once: on a CPU 1, on GPUs one on each")
    parser.add_argument("--dry-run", action="store_true", help="say what there is to do, and do nothing")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="ROW",
        help="rows to make: BUDGET-METHOD-ARCH, METHOD-ARCH, METHOD or ARCH, with * and ? as in a shell",
    )


def run(options: argparse.Namespace) -> str:
    """Make the runs that are wanted and write the tables of all that are done; returns the tables.

    Raises MissingInput before stage check_labels, ConfigError for a grid or words that cannot be, for labels or maps
    made with other numbers and for runs begun with something else, InUse while another process works in the folder,
    RunsFailed, after all is written, when runs failed.
    """
    from sum.ablation import Run, chosen, refuse_words, rows_of, runs_of
    from sum.commands.ablate_inputs import keys_of, make_plans, refuse_others, require_inputs, require_made_so
    from sum.config import check_config, compose
    from sum.errors import ConfigError, choose

    strange = [word for word in options.words if "=" not in word]
    if strange:
        raise ConfigError(f"ablate: '{strange[0]}' is no key=value; rows are chosen by --only")
    refuse_words(options.words)
    tree = compose(options.words, folder=Path.cwd())
    config = check_config(tree, source=PARAMS.name, overridden=keys_of(options.words))
    for budget in config.ablation.budgets:  # here: who names budgets anew and never ablates is not to be stopped
        choose(config.budgets, budget, key="ablation.budgets")
    rows = rows_of(config.ablation.budgets, config.ablation.pairs())
    wanted = chosen(rows, options.only)
    require_inputs()
    require_made_so(config)
    words = [*options.words, f"tracking.experiment={config.tracking.experiment}{SUFFIX}"]
    out = options.out.resolve()
    plans = make_plans([Run(None), *runs_of(rows, config.ablation.seeds)], words, tree, out=out)
    todo = [plan for plan in plans if plan.run.row is None or plan.run.row in wanted]
    _tell_overridden(wanted, options.words, config)
    if options.dry_run:
        return _told(plans, todo, out)
    refuse_others(todo, out=out)
    return _made(config, plans, todo, jobs=options.jobs, out=out)


def _tell_overridden(rows: Sequence[Row], words: Sequence[str], config: Config) -> None:
    """Log which numbers of the command line do not reach a row, for it has its own."""
    from sum.ablation import overridden

    for row in rows:
        lost = overridden(row, words, config.ablation.settings)
        if lost:
            log.warning("%s: %s: ablation.settings win for this row", row.name, ", ".join(lost))


def _told(plans: Sequence[Plan], todo: Sequence[Plan], out: Path) -> str:
    """--dry-run."""
    from sum.commands.ablate_inputs import in_short

    lines = []
    for plan in plans:
        state = STATES[plan.state] if plan in todo or plan.state == "done" else f"{STATES[plan.state]}, not asked for"
        lines.append(f"{plan.run.name}: {state}{': ' if plan.differences else ''}{in_short(plan.differences)}")
        lines += [f"  {' '.join(plan.call(command))}" for command in plan.commands if plan.state != "done"]
    waiting = [plan for plan in todo if plan.state != "done"]
    lines.append(f"{len(waiting)} of {len(plans)} runs to make in {out}{_time(plans, waiting)}")
    return "\n".join([*lines, ""])


def _time(plans: Sequence[Plan], waiting: Sequence[Plan]) -> str:
    """How long the waiting runs will take by those that are done, or what says so before any is."""
    done = [sum(plan.times.values()) for plan in plans if plan.state == "done" and plan.run.row is not None]
    if not waiting:
        return ""
    if not done:
        return "; `python -m sum plan` with the words of `finetune` says how long a training takes"
    mean = sum(done) / len(done)
    whole = f"{mean / 60:.1f} min each of the {len(done)} that are done"
    return f"; {whole}, so about {mean * len(waiting) / 3600:.1f} h one after another"


def _made(config: Config, plans: Sequence[Plan], todo: Sequence[Plan], *, jobs: int | None, out: Path) -> str:
    from sum.claims import FolderClaims
    from sum.commands import ablate_results, ablate_runner
    from sum.commands.ablate_inputs import places_of, prepare, shared_paths
    from sum.errors import InUse, RunsFailed
    from sum.stages.common import training_device

    places = ablate_runner.slots(jobs, device=training_device(config.device).type, environment=os.environ)
    with FolderClaims(out).take(".running") as mine:
        if not mine:
            raise InUse(f"{out}: another `python -m sum ablate` works here. Wait for it, or give another --out")
        waiting = [plan for plan in todo if plan.state != "done"]
        params, project = PARAMS.read_bytes(), Path.cwd()
        shared = shared_paths(config, project=project) if waiting else []
        for plan in waiting:  # all of them, before the first begins
            places_of(plan, shared, out=out)

        def begin(plan: Plan) -> None:
            prepare(plan, params=params, shared=shared, project=project, out=out)

        uri = _tracking(config) if waiting else ""

        def environment(plan: Plan) -> dict[str, str]:
            tags = json.dumps(plan.run.tags(out.name))
            return ablate_runner.environment_of(plan, tags=tags, uri=uri, cache=project / "work/cache")

        failed = ablate_runner.make(waiting, places, environment, begin=begin) if waiting else {}
        result = ablate_results.write(config, plans, failed, out=out)
    text = f"{result.text}\nTables: {out / 'tables.md'}, {out / 'index.html'}\n" if result else "no row is done yet\n"
    if failed:
        sys.stdout.write(text)
        lines = "\n".join(f"  {name}: {wrong}" for name, wrong in failed.items())
        raise RunsFailed(f"{len(failed)} of {len(waiting)} runs failed; the same command tries them again:\n{lines}")
    return text


def _tracking(config: Config) -> str:
    """MLflow's address, one that means the same from every folder; the experiment is made if need be."""
    from sum.mlflow_client import URI, absolute, connect
    from sum.tracking import experiment_id

    uri = absolute(os.environ.get(URI) or config.tracking.uri)
    experiment_id(connect(uri), f"{config.tracking.experiment}{SUFFIX}")
    return uri
