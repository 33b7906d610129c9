"""Stage check_labels: pseudo-labels and their uncertainty against their expectations, before training sees them.

A broken expectation stops the run, a warning is listed; the report is written either way.
"""

from __future__ import annotations

import logging
from pathlib import Path

from sum.data.label_checks import LabelLimits, check_labels
from sum.errors import ValidationFailed
from sum.settings import Config
from sum.storage import write_json

MANIFEST = Path("data/manifest")
LABELS = Path("data/pseudo_labels")
MAPS = Path("data/uncertainty")
OUT = Path("data/checks/labels.json")
DOCS = Path("work/checks/labels")
log = logging.getLogger(__name__)


def run(config: Config) -> Path:
    """Check data/pseudo_labels and data/uncertainty; write data/checks/labels.json and HTML pages; returns the former.

    Raises MissingInput before the stages that make them, and ValidationFailed, after all is written, naming the
    expectations and the first rows that break them.
    """
    promised, asked = config.pseudo_label, config.check_labels
    report = check_labels(
        MANIFEST,
        LABELS,
        MAPS,
        limits=LabelLimits(
            min_area=promised.min_area,
            max_area_share=promised.max_area_share,
            pred_iou_thresh=promised.pred_iou_thresh,
            stability_thresh=promised.stability_thresh,
            max_predicted_iou=asked.max_predicted_iou,
            max_share_without_masks=asked.max_share_without_masks,
            min_refine_area=config.uncertainty.min_refine_area,
        ),
        docs=DOCS,
    )
    write_json(OUT, report.as_json())
    for outcome in report.warnings:
        log.warning("%s", outcome.text)
    if report.failed:
        raise ValidationFailed(report.complaint(DOCS / "index.html"))
    return OUT
