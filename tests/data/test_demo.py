"""The built-in world: its scenes obey their laws, and what is on disk is what was drawn."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from sum.data import demo_files
from sum.data.coarse import coarsen
from sum.data.demo import LEAST_PART, LEAST_REGION, SALIENT_SHARE, Scene, least, make_scene, pretrain_scene
from sum.data.demo_files import SETS, set_scene, write_demo
from sum.data.demo_shapes import SHAPES
from sum.errors import ConfigError

SIDE = 64
SEEDS = {"train": 7, "val": 7, "test": 7}  # even with one seed no scene is in two sets
COUNTS = dict.fromkeys(SETS, 2)


def content(scene: Scene) -> bytes:
    return b"".join(a.tobytes() for a in (scene.image, scene.salient, *scene.entities, *scene.parts))


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world") / "demo"
    write_demo(root, seeds=SEEDS, scenes=COUNTS, side=SIDE)
    return root


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return [make_scene(seed) for seed in range(60)]


def test_same_seed_same_scene_other_seed_other_scene():
    assert content(make_scene(5, side=SIDE)) == content(make_scene(5, side=SIDE))
    assert len({content(make_scene(seed, side=SIDE)) for seed in range(10)}) == 10


def test_too_small_a_side_is_refused():
    with pytest.raises(ValueError, match="at least 48"):
        make_scene(0, side=32)


@pytest.mark.parametrize("side", [48, 96, 128])
def test_truth_laws(side):
    for seed in range(12):
        scene = make_scene(seed, side=side)
        assert scene.image.shape == (side, side, 3)
        assert scene.image.dtype == np.uint8
        entities, parts = np.stack(scene.entities), np.stack(scene.parts)
        assert entities.dtype == parts.dtype == scene.salient.dtype == bool
        assert (entities.sum(0) == 1).all()  # entities tile the image
        assert entities.sum((1, 2)).min() >= least(LEAST_REGION, side)
        assert parts.sum((1, 2)).min() >= least(LEAST_PART, side)
        assert parts.sum(0).max() == 1
        assert all((entities & part).any((1, 2)).sum() == 1 for part in parts)  # a part is of one entity
        painted = parts.any(0)
        objects = [entity for entity in entities if (entity & painted).any()]
        assert all((painted | ~entity).all() for entity in objects)  # parts tile their object
        group = [entity for entity in objects if (entity & scene.salient).any()]
        assert (np.any(group, axis=0) == scene.salient).all()  # salient is whole objects
        assert cv2.connectedComponents(scene.salient.astype(np.uint8), connectivity=8)[0] == 2  # and in one piece
        assert SALIENT_SHARE[0] <= scene.salient.mean() <= SALIENT_SHARE[1]


def test_one_click_has_three_answers(many):
    sizes = [sum((entity & scene.salient).any() for entity in scene.entities) for scene in many]
    assert np.mean([size >= 2 for size in sizes]) >= 0.5
    assert all(len(scene.parts) >= 4 for scene in many)


def test_truth_matches_the_pixels(many):
    """Colour changes where the truth changes: steps across mask edges are far larger than steps inside masks."""
    across, inside = [], []
    for scene in many[:20]:
        step = np.abs(np.diff(cv2.GaussianBlur(scene.image, (0, 0), 1).astype(float), axis=1)).mean(-1)
        label = np.zeros(scene.salient.shape, int)
        for number, mask in enumerate([*scene.entities, *scene.parts]):
            label[mask] = number
        edge = np.diff(label, axis=1) != 0
        across.append(step[edge].mean())
        inside.append(step[~edge].mean())
    assert np.mean(across) > 3 * np.mean(inside)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_shape_is_an_object_of_parts(name):
    shape, lean = SHAPES[name]
    for seed in range(5):
        pieces = shape(np.random.default_rng(seed), 0.15)
        points = np.concatenate([contour for piece in pieces for region in piece.regions for contour in region])
        assert 2 <= len(pieces) <= 8
        assert 0 < lean <= np.pi
        assert np.isfinite(points).all()
        assert np.abs(points).max() < 1.5
        assert np.ptp(points, axis=0).min() > 0.6


def test_coarsen_loses_what_is_thin_and_small_only():
    mask = np.zeros((64, 64), bool)
    mask[8:40, 8:40] = True
    square = mask.copy()
    mask[20:23, 20:23] = False  # a hole 3 px wide
    mask[50:52, 5:60] = True  # a line 2 px wide
    rough = coarsen(mask, size=5)
    assert rough.dtype == bool
    assert rough[20:23, 20:23].all()
    assert not rough[48:].any()
    assert (rough & square).sum() / (rough | square).sum() > 0.97
    assert not coarsen(np.zeros((9, 9), bool), size=5).any()
    assert coarsen(np.ones((9, 9), bool), size=5).all()


def test_coarsen_is_careless_but_not_blind(many):
    score = [(e & coarsen(e, size=5)).sum() / (e | coarsen(e, size=5)).sum() for s in many for e in s.entities]
    assert 0.85 < np.median(score) < 0.98
    assert np.quantile(score, 0.1) < 0.85


def test_no_scene_in_two_sets():
    scenes = [set_scene(name, index, seeds=SEEDS, side=SIDE) for name in SETS for index in range(4)]
    scenes += [pretrain_scene(index, seed=7, side=SIDE) for index in range(4)]
    assert len({content(scene) for scene in scenes}) == len(scenes)


def test_files_hold_the_images_and_the_salient_masks(root):
    for name in SETS:
        pictures = sorted((root / name / "images").iterdir())
        assert len(pictures) == COUNTS[name]
        for index, path in enumerate(pictures):
            scene = set_scene(name, index, seeds=SEEDS, side=SIDE)
            error = np.abs(np.asarray(Image.open(path)).astype(int) - scene.image)
            assert error.mean() < 5  # JPEG of a noisy photo; swapped colours would differ far more
            if name.startswith("salient"):
                stored = np.asarray(Image.open(root / name / "masks" / f"{path.stem}.png"))
                assert stored.dtype == np.uint8
                assert (stored == scene.salient * 255).all()
    assert [p.name for p in (root / "unlabelled").iterdir()] == ["images"]


@pytest.mark.parametrize("name", [name for name in SETS if name.startswith(("entity", "part"))])
def test_coco_holds_the_masks(root, name):
    coco = COCO(root / name / "annotations.json")
    assert coco.dataset["licenses"]
    assert coco.dataset["info"]
    for index, (image_id, image) in enumerate(sorted(coco.imgs.items())):
        assert (root / name / "images" / image["file_name"]).is_file()
        scene = set_scene(name, index, seeds=SEEDS, side=SIDE)
        wanted = scene.entities if name.startswith("entity") else scene.parts
        stored = coco.imgToAnns[image_id]
        assert len(stored) == len(wanted)
        for annotation, mask in zip(stored, wanted, strict=True):
            assert (coco.annToMask(annotation) == mask).all()
            assert annotation["area"] == mask.sum()
            x, y, width, height = map(int, annotation["bbox"])
            assert mask[y : y + height, x : x + width].sum() == mask.sum()
            assert annotation["iscrowd"] == 0
            assert annotation["category_id"] in coco.cats


def test_writing_again_gives_the_same_bytes_and_replaces(root, tmp_path):
    again = tmp_path / "demo"
    again.mkdir()
    (again / "stale.txt").write_text("of an older run")
    write_demo(again, seeds=SEEDS, scenes=COUNTS, side=SIDE)
    assert files(again) == files(root)
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("older", [False, True])
def test_a_crash_leaves_no_half_written_root(tmp_path, monkeypatch, older):
    root = tmp_path / "demo"
    if older:
        write_demo(root, seeds=SEEDS, scenes={"unlabelled": 1}, side=SIDE)
    before = files(tmp_path)

    def crash(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(demo_files, "_annotation", crash)
    with pytest.raises(OSError, match="disk full"):
        write_demo(root, seeds=SEEDS, scenes={"salient_train": 1, "entity_train": 1}, side=SIDE)
    assert files(tmp_path) == before
    assert root.exists() == older
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("seeds", "scenes", "message"),
    [
        (SEEDS, {"salient_trian": 1}, "Did you mean 'salient_train'"),  # a typing error
        (
            {"test": 1},
            {"unlabelled": 1},
            "no seed 'train', which the set 'unlabelled'",
        ),  # no default: chance is an argument
    ],
)
def test_a_wrong_set_is_refused_before_writing(tmp_path, seeds, scenes, message):
    with pytest.raises(ConfigError, match=message):
        write_demo(tmp_path / "demo", seeds=seeds, scenes=scenes, side=SIDE)
    assert not list(tmp_path.iterdir())


def test_annotations_are_plain_json(root):
    text = (root / "part_test" / "annotations.json").read_text()
    assert json.loads(text)["annotations"][0]["segmentation"]["size"] == [SIDE, SIDE]
    assert str(root) not in text
