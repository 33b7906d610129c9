"""Stage report: base and every budget side by side -> data/report: a page that needs no network, and the table."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from sum.data.charts import curves
from sum.data.grids import Grid, make_grid, to_csv, to_markdown
from sum.data.pictures import ADDED, LONGEST, MISSED, RIGHT, strip, to_jpeg
from sum.data.protocols import OWN, same_rules
from sum.data.records import Manifest, read_manifest
from sum.data.refined_pages import evidence_files, tracked
from sum.data.refined_pages import page as evidence_page
from sum.data.score_tables import MAP_SCHEMA, MAPS, PREDICTION_SCHEMA, PREDICTIONS, of_game, read_rows, read_table
from sum.data.scores import comparison_table, estimates, task_names
from sum.data.showcase import KINDS, Answers, Example, choose_masks, draw, iou_by_model
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
OUT = Path("data/report")
BASE = "base"
STAGES = {  # title -> what a stage said about itself
    "Refinement module (held-out masks)": REFINER / "report.json",
    "Pseudo-labels": Path("data/pseudo_labels/summary.json"),
    "Uncertainty maps": Path("data/uncertainty/summary.json"),
}
Rows = Mapping[str, pd.DataFrame]  # model -> evaluation rows, the base first


def run(config: Config) -> Path:
    """Write index.html, table.md and table.csv; returns data/report.

    Raises MissingInput and DataError; TrackingError when MLflow does not take the pages already written.
    """
    played = {model: read_rows(EVALUATION / model, reader="report") for model in (BASE, *config.budgets)}
    rows = {model: of_game(table, prompt=config.evaluate.prompts[0]) for model, table in played.items()}
    protocol = _protocol([*rows])
    manifest = read_manifest(MANIFEST, reader="report")
    table = _compare(config, rows, rounds=sorted(set(rows[BASE]["round"])))
    short = table[table["round"].isin(config.evaluate.report_rounds)]
    grid = make_grid(short)
    verdicts = [_verdict(budget) for budget in config.budgets]
    chart = curves(table, unit=_unit(config))
    examples = _examples(config, rows, manifest=manifest)
    page = {
        "grid": grid,
        "by_set": make_grid(short, scope="dataset"),
        "verdicts": verdicts,
        "curves": base64.b64encode(chart).decode(),
        "examples": examples,
        "evidence": evidence_page(REFINER),
        "outputs": _outputs(config, rows, table),
        "datasets": _datasets(config, manifest),
        "training": _training([*config.budgets]),
        "protocol": _flat({**protocol.pop("choices"), **protocol}),
        "stages": [(title, _flat(_read(path))) for title, path in STAGES.items() if path.is_file()],
        **_words(config, rows[BASE]),
    }
    with replace_folder(OUT) as folder:
        (folder / "index.html").write_text(_render(page), encoding="utf-8")
        (folder / "table.md").write_text(_markdown(grid, verdicts, unit=_unit(config)), encoding="utf-8")
        (folder / "table.csv").write_text(to_csv(grid), encoding="utf-8")
    _log_to_mlflow(config, chart, examples)
    return OUT


def _compare(config: Config, rows: Rows, *, rounds: list[int]) -> pd.DataFrame:
    return comparison_table(rows, rounds=rounds, resamples=config.evaluate.resamples, seed=config.seed)


def _estimate(config: Config, rows: pd.DataFrame, *, rounds: list[int], output: str) -> pd.DataFrame:
    return estimates(rows, rounds=rounds, output=output, resamples=config.evaluate.resamples, seed=config.seed)


def _protocol(models: list[str]) -> dict[str, Any]:
    """The protocol that all evaluations share, and the weights of each. Raises as `same_rules`."""
    found = same_rules(models, reader="report")
    weights = {f"weights of {model}": facts["weights_sha256"] for model, facts in found.items()}
    return {key: value for key, value in found[BASE].items() if key not in OWN[:2]} | weights


def _verdict(budget: str) -> dict[str, Any]:
    """What the gate said: budget, word (promoted, refused or undecided) and reasons."""
    path = Path("data/registry") / f"{budget}.json"
    if not path.is_file():
        return {"budget": budget, "word": "undecided", "reasons": [f"run `dvc repro register@{budget}`"]}
    found = _read(path)
    return {"budget": budget, "word": found["verdict"], "reasons": found["reasons"]}


def _examples(config: Config, rows: Rows, *, manifest: Manifest) -> list[Example]:
    """Pictures of the masks that changed most, and of some drawn by lot."""
    shown = min(config.evaluate.report_rounds)
    iou = iou_by_model(rows, number=shown)
    chosen = choose_masks(iou, count=config.evaluate.pictures)
    wanted = {mask_id for _, _, mask_id in chosen}
    rle = {}
    for model in rows:
        path = EVALUATION / model / PREDICTIONS
        found = read_table(path, PREDICTION_SCHEMA, reader="report", maker=f"evaluate@{model}")
        found = found[(found["round"] == shown) & (found["output"] == "oracle") & found["mask_id"].isin(wanted)]
        rle[model] = dict(zip(found["mask_id"], found["rle"], strict=True))
    maps = EVALUATION / BASE / MAPS
    doubt = pd.DataFrame({"mask_id": [], "png": []})
    if maps.is_file():
        doubt = read_table(maps, MAP_SCHEMA, reader="report", maker=f"evaluate@{BASE}")
    first = rows[BASE]
    first = first[(first["round"] == 1) & (first["output"] == "oracle") & first["mask_id"].isin(wanted)]
    clicks = {
        str(row["mask_id"]): None if pd.isna(row["click_x"]) else (int(row["click_x"]), int(row["click_y"]))
        for row in first.to_dict("records")
    }
    side = choose(BACKBONES, config.model.backbone, key="model.backbone").side
    known = dict(zip(doubt["mask_id"], doubt["png"], strict=True))
    return draw(
        chosen,
        Answers(iou, rle, clicks, known, side),
        images={image.image_id: image for image in manifest.images},
        masks={mask.mask_id: mask for mask in manifest.masks if mask.mask_id in wanted},
    )


def _outputs(config: Config, rows: Rows, table: pd.DataFrame) -> list[dict[str, Any]]:
    """mIoU over all data sets of each kind of output: a row an output and round, a cell a model. table: of oracle."""
    found = []
    for output in OUTPUTS:
        rounds = set(rows[BASE].loc[rows[BASE]["output"] == output, "round"]) & set(config.evaluate.report_rounds)
        tables = {model: table[table["model"] == model] for model in rows}
        if output != "oracle":
            tables = {
                model: _estimate(config, part, rounds=sorted(rounds), output=output) for model, part in rows.items()
            }
        for number in sorted(rounds):
            cells = []
            for part in tables.values():
                wanted = (part["scope"] == "overall") & (part["metric"] == "iou") & (part["round"] == number)
                row = part[wanted].iloc[0]
                cells.append(f"{100 * row['mean']:.1f} ±{50 * (row['high'] - row['low']):.1f}")
            found.append({"output": output, "round": number, "cells": cells})
    return found


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
        found[budget] = {key: text for note in notes for key, text in _flat(note)}
    names = dict.fromkeys(key for figures in found.values() for key in figures)
    return [(name, [figures.get(name, "–") for figures in found.values()]) for name in names]


def _words(config: Config, rows: pd.DataFrame) -> dict[str, Any]:
    """Names and numbers in the page's sentences."""
    return {
        "masks": rows["mask_id"].nunique(),
        "images": rows["image_id"].nunique(),
        "sets": rows["dataset"].nunique(),
        "tasks": task_names(rows["task"]),
        "models": [BASE, *config.budgets],
        "tuned": [(name, _recipe(config, name)) for name in config.budgets],
        "backbone": f"{config.model.backbone}, {config.model.checkpoint}",
        "unit": _unit(config),
        "first_prompt": config.evaluate.prompts[0],
        "band": f"{config.evaluate.boundary_ratio:.0%}",
        "shown": min(config.evaluate.report_rounds),
        "kinds": KINDS,
        "meanings": OUTPUTS,
        "colours": {"right": RIGHT, "missed": MISSED, "added": ADDED},
        "tile": LONGEST,
    }


def _unit(config: Config) -> str:
    """What a round adds: with a box first it is not always a point."""
    return "prompts" if config.evaluate.prompts[0] == "box" else "points"


def _recipe(config: Config, budget: str) -> str:
    parts = config.budgets[budget]
    return f"tuned on {', '.join(parts.human)}; unlabelled: {', '.join(parts.unlabelled) or 'none'}"


def _render(page: Mapping[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["jpeg"] = lambda picture: base64.b64encode(to_jpeg(picture)).decode()
    template = files("sum.stages").joinpath("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(page)


def _markdown(grid: Grid, verdicts: list[dict[str, Any]], *, unit: str) -> str:
    lines = [f"- {verdict['budget']}: {verdict['word']}: {'; '.join(verdict['reasons'])}" for verdict in verdicts]
    return "\n".join([to_markdown(grid, unit=unit), *lines, ""])


def _log_to_mlflow(config: Config, chart: bytes, examples: list[Example]) -> None:
    """The page, the pictures and the evidence on the uncertainty to the run of every tuned model."""
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
        logged.log_file(OUT / "index.html", folder="report")
        for path in evidence_files(REFINER):
            logged.log_file(path, folder="refiner")
        logged.log_metrics(tracked(REFINER), step=0)
        logged.flush()
        for number, example in enumerate(examples):
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
