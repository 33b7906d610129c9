"""What `python -m sum compare` shows: a table for the terminal, the same as files, and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sum.commands.compare_models import Named
from sum.config import Config
from sum.data.gate_pages import Verdict, to_verdict
from sum.data.grids import to_csv, to_markdown
from sum.data.protocols import read_protocol, unlike
from sum.data.records import read_manifest
from sum.data.report_page import About, build, render
from sum.errors import DataError, choose
from sum.models.backbones import BACKBONES
from sum.models.interact import OUTPUTS
from sum.stages.evaluate import MANIFEST
from sum.stages.register import as_report, judge
from sum.stages.report import flat_protocol
from sum.storage import replace_folder

READER = "compare"
WORDS = {  # where nobody was tuned and nothing is registered
    "title": "models side by side",
    "first": "the first, which the others are compared with",
    "others": "each of the others",
    "question": "What would the gate say?",
}
FILES = {"index.html", "table.md", "table.csv"}


def write(
    config: Config,
    models: Mapping[str, Named],
    folders: Mapping[str, Path],
    *,
    seeds: Mapping[str, Sequence[str]],
    force: bool,
    out: Path,
) -> str:
    """Write the folder `out`; returns the table and where the report is.

    models, folders: name -> model and its evaluation, the base first; seeds: label -> the names of those that are
    seeds of one. Raises DataError when they were made by different rules, unless forced, or are of different masks;
    MissingInput.
    """
    protocols = {model: read_protocol(folder, reader=READER) for model, folder in folders.items()}
    differing = refuse(protocols, force=force)
    page = build(
        folders,
        protocols,
        _about(config, models, seeds, protocols),
        manifest=read_manifest(MANIFEST, reader=READER),
        seeds=seeds,
    )
    verdicts = [] if differing else _judge(config, folders, protocols)
    text = to_markdown(page.grid, unit=page.unit)
    told = [
        f"- {verdict.model}: the gate would say: {verdict.word}: {'; '.join(verdict.reasons)}" for verdict in verdicts
    ]
    told += [f"- other rules, compared by force: {said}" for said in differing]
    with replace_folder(out) as folder:
        (folder / "index.html").write_text(
            render(page, verdicts=verdicts, protocol=flat_protocol(protocols), warnings=differing, **WORDS),
            encoding="utf-8",
        )
        (folder / "table.md").write_text("\n".join([text, *told, ""]), encoding="utf-8")
        (folder / "table.csv").write_text(to_csv(page.grid), encoding="utf-8")
    return "\n".join(["", text, *told, f"\nReport: {out / 'index.html'}", ""])


def refuse(protocols: Mapping[str, Mapping[str, Any]], *, force: bool) -> list[str]:
    """What differs in the rules, in words; raises DataError unless forced."""
    base, found = next(iter(protocols)), list[str]()
    for model, said in unlike(protocols).items():
        words = f"{base} and {model} were made by different rules: {said}"
        if not force:
            raise DataError(f"{words}. --force compares them all the same, and the report says so.")
        found.append(words)
    return found


def _judge(config: Config, folders: Mapping[str, Path], protocols: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    """What the gate would say of each model against the first, with intervals and p-values."""
    base, *others = folders
    rules, found = protocols[base], list[Verdict]()
    played = [number for number in config.register.rounds if number <= rules["rounds"]]
    settings = replace(config.register, rounds=played or [1])
    for model in others:
        try:
            verdict = judge(folders[base], folders[model], rules, settings=settings, seed=config.seed)
        except DataError as error:
            found.append(Verdict(model, "not judged", (str(error),)))
            continue
        found.append(to_verdict(as_report(verdict, settings=settings), model=model))
    return found


def _about(
    config: Config,
    models: Mapping[str, Named],
    seeds: Mapping[str, Sequence[str]],
    protocols: Mapping[str, Mapping[str, Any]],
) -> About:
    settings, of = config.evaluate, {name: label for label, names in seeds.items() for name in names}
    words = {of.get(name, name): str(model.place) for name, model in models.items()}
    for label, names in seeds.items():
        words[label] = f"{len(names)} seeds: {', '.join(str(models[name].place) for name in names)}"
    base, *others = words
    backbone = str(next(iter(protocols.values()))["backbone"])
    return About(
        base=words[base],
        tuned=[(label, words[label]) for label in others],
        outputs=OUTPUTS,
        report_rounds=next(iter(protocols.values()))["report_rounds"],
        resamples=settings.resamples,
        seed=config.seed,
        pictures=settings.pictures,
        side=choose(BACKBONES, backbone, key="model.backbone").side,
        stated={name: entry.expect.point_miou for name, entry in config.datasets.items()},
    )
