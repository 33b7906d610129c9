"""README's "Your own images", command by command, on a small export of either kind, up to validation (slow)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.small import PROJECT, Small

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HEIGHT, WIDTH = 48, 64
NAMES = {"train": ["a", "b", "c"], "test": ["d", "e"]}


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_photos(export: Path) -> None:
    """Five photos that get masks, two that get none."""
    for number, name in enumerate([*"abcde", "u", "v"]):
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3))
        save((export / "images" if number < 5 else export.with_name("photos")) / f"{name}.jpg", pixels)


def write_pngs(export: Path) -> None:
    for split, names in NAMES.items():
        (export / f"{split}.txt").write_text("\n".join(names))
        for name in names:
            mask = np.zeros((HEIGHT, WIDTH))
            mask[10:30, 20:50] = 255
            save(export / "masks" / f"{name}.png", mask)


def write_coco(export: Path) -> None:
    for split, names in NAMES.items():
        size = {"height": HEIGHT, "width": WIDTH}
        tree: dict[str, Any] = {"categories": [{"id": 1, "name": "thing"}]}
        tree["images"] = [{"id": n, "file_name": f"{name}.jpg", **size} for n, name in enumerate(names)]
        corners = [[20, 10, 50, 10, 50, 30, 20, 30]]
        tree["annotations"] = [
            {"id": n, "image_id": n, "category_id": 1, "iscrowd": 0, "segmentation": corners} for n in range(len(names))
        ]
        (export / f"{split}.json").write_text(json.dumps(tree))


def readme_commands() -> list[str]:
    """The commands of README's chapter, without their remarks."""
    block = re.search(r"## Your own images\n\n```\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    assert block
    return [line.split("  #")[0].strip() for line in block.group(1).splitlines()]


def run(project: Small, command: str, *, export: Path) -> str:
    """A line of the README in a shell where this interpreter's tools come first, the export in place of EXPORT."""
    words = command.replace("EXPORT", str(export)).replace("PHOTOS", str(export.with_name("photos")))
    done = subprocess.run(  # the README is ours
        words, shell=True, cwd=project.folder, env=project.env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, command + done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["coco", "raster"])
def test_the_readme_up_to_a_validated_manifest(tmp_path, kind):
    export, folder = tmp_path / "export", tmp_path / "project"
    write_photos(export)
    (write_coco if kind == "coco" else write_pngs)(export)
    folder.mkdir()
    project = Small(folder)
    shutil.copytree(PROJECT / "examples", folder / "examples")
    activate, dry_run, use, add, add_photos, ingest, _ = readme_commands()  # the last one wants Meta's weights
    assert activate == "source .venv/bin/activate"  # `project.env` does it here
    assert f"kind: {kind}" in run(project, dry_run, export=export)
    for command in (use, add, add_photos):
        run(project, command, export=export)
    said = run(project, ingest, export=export)
    assert re.search(r"mine +│ +3 │ +3 │ +0", said), said
    assert re.search(r"shop +│ +2 │ +0 │ +0", said), said
    run(project, ingest.replace("ingest", "validate"), export=export)
    assert json.loads((folder / "data/validation/report.json").read_text())["success"] is True
    assert "up to date" in project.dvc("status", "data/raw/mine.dvc")  # the photos are versioned as they are
