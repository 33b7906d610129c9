"""Stage report: base and every budget side by side -> data/report: a page that needs no network, and the table."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sum.data.gate_pages import Verdict, read_verdict
from sum.data.grids import Grid, to_csv, to_markdown
from sum.data.pictures import strip
from sum.data.protocols import OWN, same_rules
from sum.data.records import Manifest, read_manifest
from sum.data.refined_pages import evidence_files, tracked
from sum.data.refined_pages import page as evidence_page
from sum.data.report_page import About, Page, build, render
from sum.errors import choose
from sum.models.backbones import BACKBONES
from sum.models.interact import OUTPUTS
from sum.registry import run_of_weights
from sum.settings import Config
from sum.storage import replace_folder, sha256_file

MANIFEST = Path("data/manifest")
EVALUATION = Path("data/evaluation")
MODELS = Path("data/models")
REFINER = Path("data/refiner")
REGISTRY = Path("data/registry")
OUT = Path("data/report")
CURVES = "curves.png"
BASE = "base"
SHA256 = re.compile(r"[0-9a-f]{64}")
STAGES = {  # title -> what a stage said about itself
    "Refinement module (held-out masks)": REFINER / "report.json",
    "Pseudo-labels": Path("data/pseudo_labels/summary.json"),
    "Uncertainty maps": Path("data/uncertainty/summary.json"),
}


def run(config: Config) -> Path:
    """Write index.html, curves.png, table.md and table.csv; returns data/report.

    Raises MissingInput and DataError; TrackingError when MLflow does not take the pages already written.
    """
    models = (BASE, *config.budgets)
    protocols = same_rules(models, reader="report")
    manifest = read_manifest(MANIFEST, reader="report")
    page = build({model: EVALUATION / model for model in models}, protocols, _about(config), manifest=manifest)
    verdicts = [read_verdict(REGISTRY / f"{budget}.json", model=budget) for budget in config.budgets]
    text = render(
        page,
        verdicts=verdicts,
        evidence=evidence_page(REFINER),
        datasets=_datasets(config, manifest),
        training=_training([*config.budgets]),
        stages=[(title, _flat(_read(path))) for title, path in STAGES.items() if path.is_file()],
        protocol=flat_protocol(protocols),
    )
    with replace_folder(OUT) as folder:
        (folder / "index.html").write_text(text, encoding="utf-8")
        (folder / "table.md").write_text(_markdown(page.grid, verdicts, unit=page.unit), encoding="utf-8")
        (folder / "table.csv").write_text(to_csv(page.grid), encoding="utf-8")
        (folder / CURVES).write_bytes(page.chart)
    _log_to_mlflow(config, page)
    return OUT


def _about(config: Config) -> About:
    settings = config.evaluate
    return About(
        base=f"{config.model.backbone}, {config.model.checkpoint}",
        tuned=[(name, _recipe(config, name)) for name in config.budgets],
        outputs=OUTPUTS,
        report_rounds=settings.report_rounds,
        resamples=settings.resamples,
        seed=config.seed,
        pictures=settings.pictures,
        side=choose(BACKBONES, config.model.backbone, key="model.backbone").side,
        stated={name: entry.expect.point_miou for name, entry in config.datasets.items()},
    )


def flat_protocol(protocols: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What all evaluations share, choices first, and the weights of each."""
    shared = {key: value for key, value in next(iter(protocols.values())).items() if key not in OWN}
    weights = {f"weights of {model}": facts["weights_sha256"] for model, facts in protocols.items()}
    return _flat({**shared.pop("choices"), **shared, **weights})


def _datasets(config: Config, manifest: Manifest) -> list[dict[str, Any]]:
    images = pd.Series([image.dataset for image in manifest.images]).value_counts()
    masks = pd.Series([mask.dataset for mask in manifest.masks], dtype="str").value_counts()
    summary = MANIFEST / "summary.json"
    skipped = _read(summary)["datasets"] if summary.is_file() else {}
    found = []
    for name, entry in config.datasets.items():
        used = [budget for budget, parts in config.budgets.items() if name in (*parts.human, *parts.unlabelled)]
        counts = {"images": int(images.get(name, 0)), "masks": int(masks.get(name, 0))}
        counts["skipped"] = int(skipped.get(name, {}).get("skipped", 0))
        about = {"split": entry.split, "task": entry.task, "licence": entry.licence}
        found.append({"name": name, **about, **counts, "budgets": ", ".join(used) or "–"})
    return found


def _training(budgets: list[str]) -> list[tuple[str, list[str]]]:
    """A row a figure that finetune wrote down, a value a budget."""
    found = {}
    for budget in budgets:
        notes = [_read(path) for name in ("summary", "run") if (path := MODELS / budget / f"{name}.json").is_file()]
        found[budget] = {key: _short(text) for note in notes for key, text in _flat(note)}
    names = dict.fromkeys(key for figures in found.values() for key in figures)
    return [(name, [figures.get(name, "–") for figures in found.values()]) for name in names]


def _short(text: str) -> str:
    """A sha256 cut to what tells it from others: whole, a column of them is wider than the page."""
    return f"{text[:12]}…" if SHA256.fullmatch(text) else text


def _recipe(config: Config, budget: str) -> str:
    parts = config.budgets[budget]
    return f"tuned on {', '.join(parts.human)}; unlabelled: {', '.join(parts.unlabelled) or 'none'}"


def _markdown(grid: Grid, verdicts: Sequence[Verdict], *, unit: str) -> str:
    lines = [f"- {verdict.model}: {verdict.word}: {'; '.join(verdict.reasons)}" for verdict in verdicts]
    return "\n".join([to_markdown(grid, unit=unit), *lines, ""])


def _log_to_mlflow(config: Config, page: Page) -> None:
    """Page, curves, pictures and the evidence on the uncertainty to the run of every tuned model."""
    settings = config.tracking
    for budget in config.budgets:
        weights = MODELS / budget / "model.safetensors"
        if not weights.is_file():
            continue
        logged = run_of_weights(
            weights,
            uri=settings.uri,
            experiment=settings.experiment,
            name=f"{settings.model}-ft-{budget}",
            fingerprint=sha256_file(weights),
        )
        for name in ("index.html", CURVES):
            logged.log_file(OUT / name, folder="report")
        for path in evidence_files(REFINER):
            logged.log_file(path, folder="refiner")
        logged.log_metrics(tracked(REFINER), step=0)
        logged.flush()
        for number, example in enumerate(page.examples):
            tiles = [tile.picture for tile in example.tiles if tile.title not in set(config.budgets) - {budget}]
            logged.log_image(strip(tiles), name=f"pictures/{example.task}-{number:02d}-{example.kind}.png")


def _flat(value: Any, *, above: str = "") -> list[tuple[str, str]]:
    """Nested JSON -> (a.b, text) pairs."""
    found: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{above}{key}".replace("_", " ")
        if isinstance(item, dict):
            found += _flat(item, above=f"{name}: ")
        elif isinstance(item, list):
            found.append((name, ", ".join(map(str, item)) or "–"))
        else:
            found.append((name, f"{item:,.4g}" if isinstance(item, float) else str(item)))
    return found


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
