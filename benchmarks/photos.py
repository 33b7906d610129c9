"""Do ingest's counts equal the README of the photos? python benchmarks/photos.py FOLDER, where ingest has run.

FOLDER: the photos, whose README.md has a table of pictures and masks. Reads data/manifest/summary.json of the working
directory, which examples/photos.yaml gives; ends with 1 when a count differs.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROW = re.compile(r"^\| (salient|entity|part|unlabelled) \| (train|val|–) \| ([\d,]+) \| ([\d,]+|–) \|", re.MULTILINE)


def readme_counts(text: str) -> dict[str, tuple[int, int]]:
    """Name of the data set in examples/photos.yaml -> images and masks of the README's table."""
    rows = {}
    for task, split, pictures, masks in ROW.findall(text):
        name = f"{task}_val" if split == "val" else task
        rows[name] = (int(pictures.replace(",", "")), 0 if masks == "–" else int(masks.replace(",", "")))
    return rows


def compare(readme: dict[str, tuple[int, int]], summary: dict) -> bool:
    """Print a line a data set; whether all are equal and nothing was skipped."""
    good = bool(readme) and set(readme) == set(summary["datasets"])
    for name, (images, masks) in readme.items():
        found = summary["datasets"].get(name, {"images": 0, "masks": 0, "skipped": 0})
        same = (found["images"], found["masks"], found["skipped"]) == (images, masks, 0)
        good &= same
        counts = f"ingest {found['images']:5} {found['masks']:5}, {found['skipped']} skipped"
        verdict = "equal" if same else "DIFFERENT"
        print(f"{name:12} README {images:5} images {masks:5} masks; {counts}: {verdict}")
    return good


def main() -> int:
    """Exit code."""
    readme = (Path(sys.argv[1]) / "README.md").read_text(encoding="utf-8")
    summary = json.loads(Path("data/manifest/summary.json").read_text(encoding="utf-8"))
    return 0 if compare(readme_counts(readme), summary) else 1


if __name__ == "__main__":
    sys.exit(main())
