"""Stage pseudo_label in a project of its own: what it labels, resuming to the byte, bad photos."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from sum.data.ahead import Photo
from sum.data.images import read_image
from sum.data.labels import LabelStore
from sum.data.records import decode_mask, read_manifest, write_manifest
from sum.data.shards import LABELS, read_info
from sum.errors import CheckpointError, DataError, MissingInput, ValidationFailed
from sum.labelling import label
from sum.models.checkpoint import load_segmenter
from sum.models.generator import generate
from sum.models.sieve import GeneratorSettings
from sum.stages import pseudo_label, refine
from sum.storage import sha256_file
from tests.stages.label_world import CHANGES, SIZES, WEIGHTS, configure, contents, kill, make_project, record

OUT = Path("data/pseudo_labels")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("template")
    make_project(folder)
    return folder


def summary() -> dict:
    return json.loads((OUT / "summary.json").read_text())


def test_every_unlabelled_image_is_labelled_as_the_generator_says(project: Path) -> None:
    assert pseudo_label.run(configure(project)) == OUT
    store = LabelStore(OUT)
    assert sorted(store.image_ids) == [f"u/{number}" for number in range(5)]  # not the train and test images
    assert store.shards == [f"shard-{number:05d}.arrow" for number in range(4)]  # a power of two: 5 / 4 <= 2 images
    for number, name in enumerate(store.shards):  # the first two bits of the content hash say which
        hashes = [sha256_file(record(int(image_id[2:])).path) for image_id in store.info(name).images]
        assert {int(digest[0], 16) >> 2 for digest in hashes} <= {number}
    model = load_segmenter(WEIGHTS, backbone="tiny")
    options = {name: value for name, value in CHANGES["pseudo_label"].items() if name != "shard_images"}
    for number, (height, width) in enumerate(SIZES):
        masks = store.masks(f"u/{number}")
        want = generate(model, read_image(record(number).path), settings=GeneratorSettings(**options))
        assert [(m.rle, m.point, m.box, m.area) for m in masks] == [(w.rle, w.point, w.box, w.area) for w in want]
        assert [mask.index for mask in masks] == list(range(len(want)))
        for mask, other in zip(masks, want, strict=True):
            codes = np.round(255 / (1 + np.exp(-other.logits.astype(np.float64))))
            assert np.abs(store.sam(mask.image_id, [mask.index])[0] - codes).max() <= 1  # float32 at a half
            pixels = decode_mask(mask.rle, height=height, width=width)
            assert pixels.sum() == mask.area
            assert tight_box(pixels) == mask.box


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = mask.nonzero()
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_the_summary_counts(project: Path) -> None:
    pseudo_label.run(configure(project))
    counts = [LabelStore(OUT).count(f"u/{number}") for number in range(5)]
    found = summary()
    assert (found["images"], found["masks"], found["shards"]) == (5, sum(counts), 4)
    assert found["masks_per_image"] == {"median": np.median(counts), "min": min(counts), "max": max(counts)}
    assert found["masks_per_prompt"] == pytest.approx(sum(counts) / (5 * 4), abs=1e-6)
    assert found["settings"]["points_per_side"] == 2
    assert found["unreadable"] == {}


def test_an_image_without_masks_is_labelled_all_the_same(project: Path) -> None:
    pseudo_label.run(configure(project, pseudo_label={"pred_iou_thresh": 99.0}))
    store = LabelStore(OUT)
    assert len(store) == 5
    assert [store.masks(image_id) for image_id in store.image_ids] == [[]] * 5
    assert (summary()["masks"], summary()["images_without_masks"]) == (0, 5)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(project, whole)
    monkeypatch.chdir(whole)
    pseudo_label.run(configure(whole))
    kill(project, stage="pseudo_label", function="label", call=4)  # in the middle of the second shard with images
    monkeypatch.chdir(project)
    assert not OUT.exists()
    (work,) = Path("work/pseudo_label").iterdir()
    assert len(list(work.glob("*.arrow"))) == 3  # of four, two of them empty
    asked = []

    def counted(*arguments: object, **options: object) -> object:
        asked.append(1)
        return label(*arguments, **options)

    monkeypatch.setattr(pseudo_label, "label", counted)
    pseudo_label.run(configure(project))
    assert len(asked) == 3  # the two images of the finished shard are not asked about again
    assert contents(OUT) == contents(whole / OUT)
    assert not list(work.glob(".*"))  # the killed run's half shard is swept up


def test_other_settings_do_not_take_up_old_shards(project: Path) -> None:
    pseudo_label.run(configure(project))
    before = summary()["masks"]
    pseudo_label.run(configure(project, pseudo_label={"points_per_side": 1}))
    assert 0 < summary()["masks"] < before


@pytest.mark.parametrize("what", ["truncated", "missing", "resized"])
def test_a_bad_photo_is_listed(project: Path, what: str) -> None:
    path = Path(record(3).path)
    data = path.read_bytes()
    if what == "truncated":
        path.write_bytes(data[:-200])
    elif what == "missing":
        path.unlink()
    else:
        shutil.copy(record(0).path, path)
    pseudo_label.run(configure(project))
    found = summary()
    assert (found["images"], found["images_unreadable"]) == (4, 1)
    assert record(3).path in found["unreadable"]["u/3"]
    assert "u/3" not in LabelStore(OUT)
    path.write_bytes(data)  # mended: the shard is made again, the others are not
    pseudo_label.run(configure(project))
    assert (summary()["images"], summary()["unreadable"]) == (5, {})


def test_no_readable_photo_at_all_is_an_error(project: Path) -> None:
    shutil.rmtree("data/raw")
    with pytest.raises(DataError, match=r"none of 5 unlabelled images can be read.*data/raw/u/0\.png"):
        pseudo_label.run(configure(project))
    assert not OUT.exists()


@pytest.mark.parametrize("damage", ["cut", "a byte of the masks"])
def test_a_damaged_shard_of_an_earlier_run_is_made_again(project: Path, damage: str) -> None:
    pseudo_label.run(configure(project))
    want = contents(OUT)
    (work,) = Path("work/pseudo_label").iterdir()
    shard = max(work.glob("*.arrow"), key=lambda path: path.stat().st_size)
    data = shard.read_bytes()
    shard.unlink()  # the published one is a link to it
    middle = len(data) // 2
    turned = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    shard.write_bytes(data[:-50] if damage == "cut" else turned)
    pseudo_label.run(configure(project))
    assert contents(OUT) == want
    assert read_info(shard, kind=LABELS).images


def test_missing_weights_say_what_to_set(project: Path) -> None:
    WEIGHTS.unlink()
    with pytest.raises(CheckpointError, match=r"no such weights file\. .* set model\.checkpoint in params\.yaml"):
        pseudo_label.run(configure(project))


def test_without_unlabelled_images_there_is_an_empty_folder(project: Path) -> None:
    write_manifest(Path("data/manifest"), [record(5, split="train")], [])
    pseudo_label.run(configure(project))
    assert len(LabelStore(OUT)) == 0
    assert summary()["images"] == 0


@pytest.mark.parametrize(("gone", "maker"), [("data/manifest", "ingest"), ("data/validation", "validate")])
def test_a_missing_input_names_its_stage(project: Path, gone: str, maker: str) -> None:
    shutil.rmtree(gone)
    with pytest.raises(MissingInput, match=rf"stage 'pseudo_label' reads it, stage '{maker}' writes it"):
        pseudo_label.run(configure(project))


@pytest.mark.parametrize("stage", [pseudo_label, refine])
def test_data_that_broke_an_expectation_are_not_used(project: Path, stage: ModuleType) -> None:
    """A failed validate leaves its report: that it is there says nothing."""
    Path("data/validation/report.json").write_text('{"success": false}')
    with pytest.raises(ValidationFailed, match="`dvc repro validate`"):
        stage.run(configure(project))
    assert not Path("work").exists()


def test_a_new_image_changes_only_the_shard_it_falls_into(project: Path) -> None:
    pseudo_label.run(configure(project))
    before = contents(OUT)
    images = read_manifest(Path("data/manifest"), reader="test").images
    moved = next(image for image in images if image.image_id == "u/3")
    write_manifest(Path("data/manifest"), [*images, replace(moved, image_id="v/3")], [])
    (work,) = Path("work/pseudo_label").iterdir()
    old = {path.name for path in work.glob("*.arrow")}
    pseudo_label.run(configure(project))
    after = contents(OUT)
    assert [name for name in before if before[name] != after[name]] == ["shard-00003.arrow", "summary.json"]
    assert len({path.name for path in work.glob("*.arrow")} - old) == 1


@pytest.mark.parametrize("together", [1, 3])
def test_an_image_that_does_not_fit_into_the_memory_fails_alone(
    project: Path, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real images of one size: the device is full whenever the third one is at work."""

    def narrow(model: object, photos: Sequence[Photo], ids: Sequence[str], **options: object) -> object:
        if "u/2" in ids:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return label(model, photos, ids, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pseudo_label, "label", narrow)
    pseudo_label.run(configure(project, pseudo_label={"images_per_batch": together}))
    assert summary()["images"] == 4
    (reason,) = summary()["unreadable"].values()
    assert re.search(r"u/2\.png: 70 x 40 px do not fit into the memory", reason)


def test_a_bad_photo_may_fail_the_stage_without_losing_the_rest(project: Path) -> None:
    Path(record(3).path).unlink()
    with pytest.raises(DataError, match=r"1 unlabelled images cannot be used.*on_bad to skip.*\n.*u/3\.png"):
        pseudo_label.run(configure(project, pseudo_label={"on_bad": "fail"}))
    assert not OUT.exists()
    (work,) = Path("work/pseudo_label").iterdir()
    inodes = {path.name: path.stat().st_ino for path in work.glob("*.arrow")}
    pseudo_label.run(configure(project, pseudo_label={"on_bad": "skip"}))
    assert {path.name: path.stat().st_ino for path in work.glob("*.arrow")} == inodes
    assert summary()["images_unreadable"] == 1
