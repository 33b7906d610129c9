"""The command line: picks the stage, loads the config, starts logging, says what was written and what it cost.

Exit codes: 0 done, 1 the input is at fault or a disk or bucket refuses for good, 2 the command line or params.yaml is
at fault, 75 a disk, bucket or server does not answer, or the same training runs already (trying again may help), 130
interrupted.
Nothing heavy is imported before the stage is known: `python -m sum --help` must answer at once.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from sum.errors import ConfigError, InUse, Refused, StorageError, SumError, TrackingError, Unknown, choose
from sum.launch import images_each, processes, torchrun

if TYPE_CHECKING:
    from sum.config import Config

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stage:
    """A module of sum.stages; `per`: what its one positional argument names, if it has one."""

    about: str
    per: Literal["budget", "model"] | None = None


STAGES: Mapping[str, Stage] = {
    "demo": Stage("draw the built-in demo data sets into data/raw/demo"),
    "ingest": Stage("read the data sets of params.yaml into one manifest"),
    "validate": Stage("check the manifest with Great Expectations; a failure stops the run"),
    "refine": Stage("train the mask-refinement module on human masks"),
    "pseudo_label": Stage("let SAM label the unlabelled images"),
    "uncertainty": Stage("give every pixel of the pseudo-labels an uncertainty"),
    "check_labels": Stage("check pseudo-labels and uncertainty with Great Expectations; a failure stops the run"),
    "finetune": Stage("tune SAM on one budget", per="budget"),
    "evaluate": Stage("run the benchmark on the base or a tuned model", per="model"),
    "check_evaluation": Stage("check the tables of the base and a tuned model with Great Expectations", per="budget"),
    "register": Stage("register a tuned model; pass the gate to become champion", per="budget"),
    "report": Stage("compare all models: data/report/index.html"),
    "pretrain": Stage("rebuild the base weights of the tiny backbone (hours; no part of `dvc repro`)"),
}


@dataclass(frozen=True, slots=True)
class Command:
    """A module of sum.commands; usage: how it is called."""

    usage: str
    about: str


COMMANDS: Mapping[str, Command] = {
    "results": Command("results", "print the results table, and where the report and MLflow are"),
    "compare": Command(
        "compare MODEL MODEL ... [key=value ...] [--seeds LABEL MODEL MODEL ...]",
        "any models on the test sets side by side, the first as the base",
    ),
    "ablate": Command(
        "ablate [key=value ...] [--out FOLDER] [--jobs N] [--dry-run] [--only ROW ...]",
        "train and compare the grid of params.yaml's `ablation`: methods, architectures, budgets, seeds",
    ),
    "dry_run": Command("ingest --dry-run PATH", "say what a folder, export or bucket holds"),
    "add": Command("add NAME PATH", "put a folder, export or bucket under DVC and into params.yaml"),
    "remove": Command("remove NAME", "undo `add NAME`"),
    "use": Command("use FILE", "take FILE (see examples/) as params.yaml; the old one is kept as params.yaml.bak"),
    "audit": Command(
        "audit [NAME ...] [--file FILE]", "read data sets and compare their counts with what they should hold"
    ),
    "data-diff": Command(
        "data-diff REV1 REV2", "what changed between two versions of the data, and the models of either"
    ),
    "export-labels": Command(
        "export-labels FOLDER [--images N]", "write pseudo-labels as COCO JSON, and their uncertainty as PNGs"
    ),
    "export": Command("export MODEL FILE [--task TASK]", "write a model as a plain SAM checkpoint"),
    "plan": Command(
        "plan [finetune | evaluate] [key=value ...] [--no-time]",
        "memory and time of fine-tuning, and settings that fit; time of evaluation, and what bounds it",
    ),
    "reproduce": Command(
        "reproduce RUN_ID [--check-only]", "train a fine-tuning of MLflow again as it was, and compare the weights"
    ),
    "rollback": Command("rollback REASON [--model NAME]", "let champion go back to the version before"),
    "contact-sheet": Command(
        "contact-sheet FILE.jpg [--images N]", "draw photos beside their pseudo-labels and uncertainty"
    ),
}
QUIET = {  # no tool phones home
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def main(argv: Sequence[str]) -> int:
    """Run one command; argv: without the program's name. Returns the exit code."""
    if all(word in ("-v", "--verbose") for word in argv):
        _tell("error: name a stage or a command, such as `ingest`; `python -m sum --help` lists them")
        return 2
    named = next((at for at, word in enumerate(argv) if not word.startswith("-")), len(argv))
    if {"-h", "--help"} & {*argv[named:]}:
        command = "dry_run" if "--dry-run" in argv else argv[named]
        if command in COMMANDS:
            sys.stdout.write(_command_parser(command)[0].format_help())
            return 0
    options, words = _parser().parse_known_args(argv)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    _start_logging(verbose=options.verbose)
    try:
        shared = torchrun(argv, os.environ)
        if shared is not None:
            _check_shared(options.stage, [*options.words, *words])
            os.execv(shared[0], shared)  # noqa: S606 - no shell, a list of arguments
        _dispatch(options.stage, [*options.words, *words])
    except SumError as error:
        _tell(f"error: {error}")
        return _exit_code(error)
    except KeyboardInterrupt:
        _tell("interrupted; run the same command again to go on from where it stopped")
        return 130
    return 0


def _exit_code(error: SumError) -> int:
    if isinstance(error, ConfigError):
        return 2
    passing = isinstance(error, StorageError | TrackingError | InUse) and not isinstance(error, Refused | Unknown)
    return 75 if passing else 1  # EX_TEMPFAIL of sysexits.h


def _parser() -> argparse.ArgumentParser:
    names = {name: f"{name} {stage.per.upper()}" if stage.per else name for name, stage in STAGES.items()}
    names |= {name: command.usage for name, command in COMMANDS.items()}
    abouts = {name: stage.about for name, stage in STAGES.items()}
    abouts |= {name: command.about for name, command in COMMANDS.items()}
    width = max(map(len, names.values())) + 2
    lines = "\n".join(f"  {names[name]:<{width}}{about}" for name, about in abouts.items())
    parser = argparse.ArgumentParser(
        prog="python -m sum",
        usage="python -m sum [-v] STAGE [NAME] [key=value ...]",
        description=f"Run one stage of the pipeline, in the order below; `dvc repro` runs them all.\n\n{lines}",
        epilog="key=value replaces a number of params.yaml for this run only, such as finetune.optim.lr=0.001.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="log what the tools do, too")
    parser.add_argument("stage", metavar="STAGE", help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", metavar="NAME | key=value", help=argparse.SUPPRESS)
    return parser


def _dispatch(name: str, words: Sequence[str]) -> None:
    if name == "ingest" and "--dry-run" in words:
        name, words = "dry_run", [word for word in words if word != "--dry-run"]
    _pick((*STAGES, *COMMANDS), name, what="stage")
    if name in COMMANDS:
        return _run_command(name, words)
    return _run_stage(name, *_understood(name, words))


def _understood(name: str, words: Sequence[str]) -> tuple[Config, dict[str, str]]:
    """Settings and the stage's own word, from the words behind its name."""
    from sum.config import load_config

    flags = [word for word in words if word.startswith("-")]
    if flags:
        raise ConfigError(f"stage '{name}' has no option {flags[0]}; numbers of params.yaml are given as key=value")
    config = load_config([word for word in words if "=" in word])
    return config, _argument(name, [word for word in words if "=" not in word], config)


def _check_shared(name: str, words: Sequence[str]) -> None:
    """Refuse wrong words and settings in a line; each process would, and torchrun would add a page."""
    config, _ = _understood(name, words)
    if name == "finetune":
        from sum.stages.common import training_device

        images_each(config.finetune.optim.images_per_batch, count=processes(os.environ))
        training_device(config.device, processes=processes(os.environ))


def _run_command(name: str, words: Sequence[str]) -> None:
    """Commands have options of their own: each module of sum.commands says which."""
    parser, module = _command_parser(name)
    sys.stdout.write(module.run(parser.parse_intermixed_args(words)))


def _command_parser(name: str) -> tuple[_CommandParser, Any]:
    """The parser of a command, and its module."""
    module = _module(f"sum.commands.{name.replace('-', '_')}")
    parser = _CommandParser(usage=f"python -m sum {COMMANDS[name].usage}", description=COMMANDS[name].about)
    module.add_arguments(parser)
    return parser, module


class _CommandParser(argparse.ArgumentParser):
    """A wrong word is a ConfigError like every other."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.format_usage().strip()}: {message}")


def _run_stage(name: str, config: Config, argument: Mapping[str, str]) -> None:
    from sum.provenance import peak_memory

    module = _module(f"sum.stages.{name}")
    began = time.perf_counter()
    written = module.run(config, **argument)
    if os.environ.get("RANK", "0") != "0":  # of processes that share the stage, the first one tells
        return
    log.info("%s: wrote %s in %.1f s, peak memory %.0f MB", name, written, time.perf_counter() - began, peak_memory())


def _module(name: str) -> Any:
    """A module with all that it imports.

    Without the garbage collector: what is imported stays, and to look for garbage in it takes a quarter of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        if collects:
            gc.enable()


def _argument(name: str, names: Sequence[str], config: Config) -> dict[str, str]:
    """The stage's own word of the command line, checked: {} or {"budget": "small"}."""
    per = STAGES[name].per
    if per is None:
        if names:
            raise ConfigError(f"stage '{name}' takes only key=value, got '{names[0]}'")
        return {}
    known = (*(("base",) if per == "model" else ()), *config.budgets)
    if len(names) != 1:
        got = f"{len(names)}: {' '.join(names)}" if names else "none"
        raise ConfigError(f"stage '{name}' wants one {per} of {', '.join(known)}; got {got}")
    return {per: _pick(known, names[0], what=per)}


def _pick(known: Sequence[str], name: str, *, what: str) -> str:
    """`name` if it is known; else ConfigError with the nearest one, of the command line instead of params.yaml."""
    try:
        return choose({entry: entry for entry in known}, name, key=what)
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("params.yaml: ")) from None


def _start_logging(*, verbose: bool) -> None:
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, omit_repeated_times=False)
        handler.setFormatter(logging.Formatter("%(message)s", datefmt="%H:%M:%S"))
    else:  # a file or a flow's log: one line a record, never wrapped
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("sum").setLevel(logging.DEBUG if verbose else logging.INFO)


def _tell(message: str) -> None:
    from rich.console import Console

    Console(stderr=True).print(message, style="bold red", markup=False, highlight=False, soft_wrap=True)
