"""Copies are found however they were saved, different photos are not; the fast search finds what a full one finds."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sum.data import duplicates
from sum.data.demo_files import set_scene
from sum.data.duplicates import find_copies, near_pairs
from sum.data.fingerprints import likeness, perceptual_hashes, thumbnail
from sum.data.records import ImageRecord
from sum.settings import ValidateConfig

BITS, ALIKE = ValidateConfig().copy_bits, ValidateConfig().copy_likeness
SEEDS = {"train": 11, "val": 12, "test": 13}
Picture = np.ndarray


@pytest.fixture(scope="module")
def photos() -> list[Picture]:
    return [set_scene("entity_train", index, seeds=SEEDS, side=128).image for index in range(12)]


def saved(picture: Picture, *, quality: int) -> Picture:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


def resized(picture: Picture, share: float) -> Picture:
    height, width = picture.shape[:2]
    return np.asarray(Image.fromarray(picture).resize((round(width * share), round(height * share))))


CHANGES = {
    **{f"JPEG {q}": lambda p, q=q: saved(p, quality=q) for q in (30, 50, 75, 95)},
    **{f"x {share}": lambda p, share=share: resized(p, share) for share in (0.25, 0.5, 2)},
    "mirrored": lambda p: p[:, ::-1].copy(),
    "mirrored, x 0.5, JPEG 50": lambda p: saved(resized(p[:, ::-1].copy(), 0.5), quality=50),
}


def bits(one: Picture, other: Picture) -> int:
    """How far two photos are, as validate sees it."""
    mine = int(perceptual_hashes(one)[0], 16)
    return min((mine ^ int(text, 16)).bit_count() for text in perceptual_hashes(other))


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found(photos: list[Picture], change: str) -> None:
    for photo in photos:
        copy = CHANGES[change](photo)
        assert bits(copy, photo) <= BITS
        assert likeness(thumbnail(copy), thumbnail(photo)) >= ALIKE


def test_different_photos_are_not(photos: list[Picture]) -> None:
    pairs = [(one, other) for k, one in enumerate(photos) for other in photos[:k]]
    assert all(bits(a, b) > BITS or likeness(thumbnail(a), thumbnail(b)) < ALIKE for a, b in pairs)


def test_the_hash_is_imagehashs_own(photos: list[Picture]) -> None:
    image = Image.fromarray(photos[0])
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert perceptual_hashes(photos[0]) == (str(imagehash.phash(image)), str(imagehash.phash(mirrored)))


@pytest.mark.parametrize(("one", "other", "want"), [(9, 9, 1.0), (9, 200, 0.0), (0, 1, 1.0)])
def test_flat_photos_are_compared_by_their_grey(one: int, other: int, want: float) -> None:
    first, second = (np.full((32, 32), grey, dtype=np.float32) for grey in (one, other))
    assert likeness(first, second) == want


@pytest.mark.parametrize("limit", [0, 3, 8, 12])
def test_the_search_finds_what_comparing_all_finds(limit: int) -> None:
    rng = np.random.default_rng(limit)
    left = rng.integers(0, 2**64, 2000, dtype=np.uint64)
    flips = rng.random((300, 64)) < rng.uniform(0, 0.25, (300, 1))
    right = left[rng.integers(0, 50, 300)] ^ (flips.astype(np.uint64) << np.arange(64, dtype=np.uint64)).sum(
        1, dtype=np.uint64
    )
    differ = np.bitwise_count(left[:, None] ^ right)
    one, other = np.nonzero(differ <= limit)
    wanted = np.stack((one, other, differ[one, other]), axis=1)
    assert len(wanted) > 1
    assert np.array_equal(near_pairs(left, right, bits=limit), wanted)


GREYS = {"free": [0, 1, 40, 200, 201], "bench": [90, 1, 200, 120]}  # of flat photos: all but black have one hash


def flat(folder: Path, counts: dict[str, int]) -> pd.DataFrame:
    """Flat photos whose greys take turns, each of other bytes than the last of its grey; two of each set are copies."""
    rows = list[ImageRecord]()
    for name, count in counts.items():
        for number in range(count):
            path, grey = folder / f"{name}{number}.png", GREYS[name][number % len(GREYS[name])]
            Image.new("RGB", (16, 16 + max(number - 2, 0)), (grey, grey, grey)).save(path)
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            hashes = perceptual_hashes(np.asarray(Image.open(path)))
            split = "test" if name == "bench" else "unlabelled"
            size = (16 + max(number - 2, 0), 16)
            row = ImageRecord(f"{name}/{number:03d}", name, str(path), content, *size, "part", split, "own")
            rows.append(replace(row, phash=hashes[0], mirror_phash=hashes[1]))
    return pd.DataFrame(rows)


def plainly(images: pd.DataFrame, allowed: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What `find_copies` must say, by comparing every photo with every test photo."""
    test, found = images[images["split"] == "test"], []
    looks = {one.image_id: thumbnail(np.asarray(Image.open(one.path))) for one in images.itertuples()}
    for one in images[images["split"] != "test"].itertuples():
        for other in sorted(test.itertuples(), key=lambda other: (other.sha256 != one.sha256, other.image_id)):
            if other.sha256 == one.sha256 or likeness(looks[one.image_id], looks[other.image_id]) >= ALIKE:
                found.append((one.image_id, other.image_id))
                if not any(fnmatchcase(one.image_id, a) and fnmatchcase(other.image_id, b) for a, b in allowed):
                    break
    return found


@pytest.mark.parametrize("allowed", [[], [("free/*", "bench/00?")], [("free/00[0-9]", "*")]], ids=str)
def test_photos_that_share_a_hash_are_compared_as_if_one_by_one(tmp_path: Path, allowed: list[tuple[str, str]]) -> None:
    images = flat(tmp_path, {"free": 30, "bench": 20})
    assert len(set(images["phash"])) == 2
    found = find_copies(images, bits=BITS, alike=ALIKE, allowed=allowed)
    assert [(copy.image_id, copy.other_id) for copy in found] == plainly(images, allowed)
    assert any(copy.same_bytes for copy in found)


def test_of_photos_that_share_a_hash_each_two_greys_are_compared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = list[float]()

    def counted(one: Picture, other: Picture) -> float:
        compared.append(likeness(one, other))
        return compared[-1]

    monkeypatch.setattr(duplicates, "likeness", counted)
    images = flat(tmp_path, {"free": 200, "bench": 100})
    find_copies(images, bits=BITS, alike=ALIKE)
    assert len(compared) <= len(GREYS["free"]) * len(GREYS["bench"])


def test_the_script_of_the_evidence_runs(tmp_path: Path, photos: list[Picture], capsys: pytest.CaptureFixture) -> None:
    from benchmarks import copies

    for number, photo in enumerate(photos[:3]):
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
    copies.main([str(tmp_path), "--scale", "1"])
    text = capsys.readouterr().out
    assert "JPEG 30" in text
    assert "3 pairs of different photos" in text
