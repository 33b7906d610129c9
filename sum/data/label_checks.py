"""What pseudo-labels and their uncertainty must fulfil before anything is learnt from them: three suites."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sum.data.checks import Suite, run_suites
from sum.data.label_tables import LabelRows, LabelTables, yield_table
from sum.data.labels import LabelStore
from sum.data.records import IMAGES, read_columns
from sum.data.reports import Report
from sum.data.rules import Rule, above, between, box_rules, equal, null, one_of, run_rules
from sum.errors import DataError, MissingInput

READER = "check_labels"
COLUMNS = ("image_id", "dataset", "path", "split", "sha256", "height", "width")  # of the manifest's images
EMPTY = pd.DataFrame({name: pd.Series(dtype="object") for name in COLUMNS})


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelLimits:
    """What stage pseudo_label promised (its settings), and what this check asks beyond."""

    min_area: float  # px at a 1024 frame
    max_area_share: float  # of the image
    pred_iou_thresh: float  # 0 or less: none was asked
    stability_thresh: float
    max_predicted_iou: float  # above: a warning
    max_share_without_masks: float  # of the labelled images of a data set; above: a warning
    min_refine_area: float  # px at a 1024 frame; smaller masks have no map


def check_labels(manifest: Path, labels: Path, uncertainty: Path, *, limits: LabelLimits, docs: Path) -> Report:
    """Check the shards in `labels` and `uncertainty` against the manifest; write HTML pages into the folder `docs`.

    Raises MissingInput before the stages that make them, DataError of the manifest's files; shards that cannot be read
    are a failure of the checks.
    """
    images = pd.concat(
        [part.to_pandas() for part in read_columns(manifest / IMAGES, COLUMNS, reader=READER)] or [EMPTY]
    )
    return run_suites(_suites(labels, uncertainty, images, unreadable=_unreadable(labels), limits=limits), docs=docs)


def _suites(
    labels: Path, uncertainty: Path, images: pd.DataFrame, *, unreadable: Mapping[str, str], limits: LabelLimits
) -> Iterator[tuple[str, Suite]]:
    """The suites by name. That of the masks comes first: reading them tells what is known of an image."""
    reason, tables = "", None
    try:
        store = LabelStore(labels, uncertainty, reader=READER)
        tables = LabelTables(store, images, unreadable=unreadable, min_refine_area=limits.min_refine_area)
    except MissingInput:
        raise
    except DataError as error:  # a shard is damaged, or gone: nothing is known of any label
        reason = str(error)

    def suite(table: pd.DataFrame | Iterator[pd.DataFrame], keys: list[str], rules: list[Rule]) -> Suite:
        return Suite(table, keys, rules, {rule.text: reason for rule in rules} if reason else {})

    masks = tables.masks() if tables else LabelRows().table(min_refine_area=0)
    yield "labels", suite(masks, ["image_id", "index"], mask_rules(limits))
    answers = tables.images() if tables else pd.DataFrame({"image_id": [], "dataset": [], "masks": []})
    yield "label_images", suite(answers, ["image_id"], image_rules())
    yield "label_sets", suite(yield_table(answers), ["dataset"], yield_rules(limits))


def _unreadable(labels: Path) -> dict[str, str]:
    """Images that stage pseudo_label listed as unreadable, with the reasons."""
    path = labels / "summary.json"
    if not path.is_file():
        raise MissingInput(path, reader=READER, maker="pseudo_label")
    try:
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["unreadable"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not what stage 'pseudo_label' writes ({error}). Run `dvc repro pseudo_label`."
        ) from error
    return found


def mask_rules(limits: LabelLimits) -> list[Rule]:
    """Of the table with a row a pseudo-mask."""
    place = "point inside image"
    return [
        null("no value is missing or infinite", "lacking"),
        *run_rules(),
        between(f"area is at least {limits.min_area:g} px of a 1024 frame", "paper_area", limits.min_area),
        between(f"area is at most {limits.max_area_share:g} of the image", "area_share", None, limits.max_area_share),
        *box_rules(),
        null("box is that of the run lengths", "box_of_runs"),
        *(between(f"{place}: {axis} >= 0", f"point_{axis}", 0) for axis in "xy"),
        above(f"{place}: x < width", "width", "point_x"),
        above(f"{place}: y < height", "height", "point_y"),
        *_score_rules(limits),
        above("best predicted IoU comes first", "iou_before", "predicted_iou", or_equal=True),
        equal(f"a map where, and only where, area is at least {limits.min_refine_area:g} px", "mapped", "wants_map"),
    ]


def _score_rules(limits: LabelLimits) -> list[Rule]:
    """Scores lie in the shards as float32: so is what they were compared with."""
    asked = max(0.0, limits.stability_thresh)
    rules = [between(f"stability is {asked:g}..1", "stability", float(np.float32(asked)), 1)]
    if limits.pred_iou_thresh > 0:
        lowest = float(np.float32(limits.pred_iou_thresh))
        rules.append(between(f"predicted IoU is at least {limits.pred_iou_thresh:g}", "predicted_iou", lowest))
    most = limits.max_predicted_iou
    return [*rules, between(f"predicted IoU is at most {most:g}", "predicted_iou", None, most, "warning")]


def image_rules() -> list[Rule]:
    """Of the table with a row an unlabelled image."""
    return [
        Rule("ExpectColumnValuesToNotBeNull", "image is in the manifest", {"column": "path"}),
        one_of("image is of split unlabelled", "split", ("unlabelled",)),
        one_of("image is labelled, or listed as unreadable", "answer", ("labelled", "unreadable")),
        null("labels can be read", "problem"),
        null("image can be read", "reason", "warning"),
        null("no labelled image in a test set", "in_test"),
    ]


def yield_rules(limits: LabelLimits) -> list[Rule]:
    """Of the table with a row a data set."""
    most = limits.max_share_without_masks
    return [between(f"at most {most:g} of the images are without masks", "share_without_masks", None, most, "warning")]
