"""Stage validate: reports and pages are written before it refuses, and the refusal names rows and files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sum.config import load_config
from sum.errors import MissingInput, ValidationFailed
from sum.settings import BudgetConfig, Config, DatasetConfig
from sum.stages import ingest, validate
from sum.stages.common import require_valid

pytestmark = pytest.mark.filterwarnings(  # of great_expectations' own imports
    "ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning"
)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A train and a test set of salient pairs, and photos without masks."""
    settings = load_config(root=ROOT)
    monkeypatch.chdir(tmp_path)
    sets = dict[str, DatasetConfig]()
    for number, (name, split) in enumerate((("human", "train"), ("bench", "test"), ("free", "unlabelled"))):
        human = split != "unlabelled"
        for folder in ("images", "masks"):
            Path("raw", name, folder).mkdir(parents=True)
        for index in range(3):
            pixels = np.random.default_rng(100 * number + index).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"raw/{name}/images/{index}.png")
            Image.fromarray(((pixels[..., 0] > 99) * 255).astype(np.uint8)).save(f"raw/{name}/masks/{index}.png")
        sets[name] = DatasetConfig(
            kind="raster" if human else "images",
            root=f"raw/{name}",
            split=split,  # type: ignore[arg-type]
            task="salient" if human else "unspecified",
            licence="CC0-1.0",
        )
    return replace(settings, datasets=sets, budgets={"small": BudgetConfig(human=["human"], unlabelled=["free"])})


def test_good_data_pass(config: Config) -> None:
    ingest.run(config)
    assert validate.run(config) == Path("data/validation")
    report = json.loads((validate.OUT / "report.json").read_text())
    assert (report["success"], report["failed"], report["tables"]["masks"]["rows"]) == (True, 0, 6)
    assert (validate.DOCS / "index.html").is_file()


def test_the_verdict_on_another_manifest_does_not_count(config: Config) -> None:
    ingest.run(config)
    validate.run(config)
    require_valid(reader="pseudo_label")
    Path("raw/free/images/2.png").unlink()
    ingest.run(config)
    with pytest.raises(ValidationFailed, match=r"about another manifest.*`python -m sum validate`"):
        require_valid(reader="pseudo_label")
    validate.run(config)
    require_valid(reader="pseudo_label")


def test_an_image_of_a_test_set_in_training_is_refused_by_name(config: Config) -> None:
    shutil.copy("raw/bench/images/1.png", "raw/human/images/2.png")
    shutil.copy("raw/bench/images/2.png", "raw/free/images/0.png")
    ingest.run(config)
    with pytest.raises(ValidationFailed) as caught:
        validate.run(config)
    message = str(caught.value)
    assert "1 of 36 expectations are not met; see work/validation/docs/index.html" in message
    assert "images: no train or unlabelled image in a test set: 2 row(s)" in message
    for mine, theirs in (("human/images/2", "bench/images/1"), ("free/images/0", "bench/images/2")):
        (line,) = [line for line in message.splitlines() if f"raw/{mine}.png" in line]
        assert f"raw/{theirs}.png" in line
    report = json.loads((validate.OUT / "report.json").read_text())
    assert (report["success"], report["failed"]) == (False, 1)
    assert "raw/bench/images/1.png" in (validate.DOCS / "index.html").read_text()


def test_wants_a_manifest(config: Config) -> None:
    with pytest.raises(MissingInput, match=r"stage 'validate' reads it, stage 'ingest' writes it"):
        validate.run(config)
