"""HQSeg-44K's parts and the six salient evaluation sets, as their archives unpack, with their known dirt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sum.data.collect import BARE
from sum.data.folders import UNMATCHED
from sum.data.mask_files import DROPPED, SPREAD
from sum.data.rasters import MISFIT, UNTURNED
from sum.data.selection import EXCLUDED
from tests.data.miniatures.expected import Expected, Writer
from tests.data.miniatures.raster_tools import H, W, box, cut, full, labels, noise, photo, save, soft

A, B, C = box(3, 4, 10, 8), noise(1), box(14, 2, 9, 18)


def write_dis(root: Path) -> Expected:
    """`im` and `gt`; names with `#` and a dot; one photo without a mask, one mask without a photo."""
    found = Expected()
    for name, mask in {"1#Accessories#1#Bag#2339506821": A, "12#Tools#3#Key.v2#99": B}.items():
        photo(root / "im" / f"{name}.jpg")
        save(root / "gt" / f"{name}.png", full(mask))
        found.masks[name] = [mask]
    photo(root / "im" / "2#Aircraft#7#Kite#1.jpg")
    save(root / "gt" / "3#Aquatic#1#Diver#5.png", full(A))
    found.problems = {"gt/2#Aircraft#7#Kite#1", "im/3#Aquatic#1#Diver#5"}
    return found


def thin_writer(part: str) -> Writer:
    def write(root: Path) -> Expected:
        """`images_PART` and `masks_PART` beside each other: soft alpha edges, LA; `.jpg` inside a name."""
        found = Expected()
        for name, values in {"bike.jpg_1": soft(C), "0_3": full(B)}.items():
            photo(root / f"images_{part}" / f"{name}.jpg")
            save(root / f"masks_{part}" / f"{name}.png", values)
        photo(root / f"images_{part}" / "alpha.jpg")
        save(root / f"masks_{part}" / "alpha.png", np.dstack((full(A), np.full((H, W), 9, np.uint8))))
        other = {"train": "test", "test": "train"}[part]
        photo(root / f"images_{other}" / "of_the_other.jpg")
        save(root / f"masks_{other}" / "of_the_other.png", full(A))
        found.masks = {"bike.jpg_1": [C], "0_3": [B], "alpha": [A]}
        return found

    return write


def write_fss(root: Path) -> Expected:
    """Flat: surplus .jpeg, a photo posing as a mask, an empty mask, masks of another size."""
    found = Expected()
    for name, mask in {"ab_wheel_1": A, "beam_bridge_10": B}.items():
        photo(root / f"{name}.jpg")
        save(root / f"{name}.png", full(mask))
        found.masks[name] = [mask]
    save(root / "ab_wheel_1.png", np.dstack([full(A)] * 3))  # grey in three channels
    for name in ("beam_bridge_10", "banana_boat_1"):
        photo(root / f"{name}.jpeg")
    for name in ("peregine_falcon_8", "bamboo_slip_7", "rubber_eraser_8", "screw_8"):
        photo(root / f"{name}.jpg")
    photo(root / "peregine_falcon_8.png")
    save(root / "bamboo_slip_7.png", full(A & ~A))
    save(root / "rubber_eraser_8.png", full(box(2, 2, 9, 9, hw=(62, 63))))
    save(root / "screw_8.png", full(box(2, 2, 9, 9, hw=(H, W - 1))))
    found.notes.update({UNMATCHED: 2, EXCLUDED: 2, MISFIT: 2, BARE: 2})
    return found


def beside_writer(spoil: Callable[[Path, Expected], None]) -> Writer:
    def write(root: Path) -> Expected:
        """NAME.jpg beside NAME.png in one folder, as CascadePSP flattens its sets."""
        found = Expected()
        for name, values in {"ILSVRC2012_test_01": full(A), "sun_b.c": soft(C)}.items():
            photo(root / f"{name}.jpg")
            save(root / f"{name}.png", values)
        found.masks = {"ILSVRC2012_test_01": [A], "sun_b.c": [C]}
        spoil(root, found)
        return found

    return write


def _duts(root: Path, found: Expected) -> None:
    """A suffix in capitals, a grey photo, masks of 0 and 1."""
    photo(root / "GREY.JPG", mode="L")
    save(root / "GREY.PNG", B.astype(np.uint8))
    found.masks["GREY"] = [B]
    found.notes[SPREAD] += 1


def _duts_te(root: Path, found: Expected) -> None:
    """A photo that broke off; a mask in RGBA whose alpha says nothing."""
    photo(root / "broken.jpg")
    cut(root / "broken.jpg")
    save(root / "broken.png", full(A))
    photo(root / "rgba.jpg")
    save(root / "rgba.png", np.dstack([full(B)] * 3 + [np.full((H, W), 255, np.uint8)]))
    found.masks["rgba"] = [B]
    found.problems.add("broken.jpg")


def _ecssd(root: Path, found: Expected) -> None:
    """The download script that copies masks from a wrong folder: photos without."""
    photo(root / "0001.jpg")
    found.problems.add("0001")


def _msra(root: Path, found: Expected) -> None:
    """An empty file, and a CMYK photo."""
    photo(root / "97915.jpg", mode="CMYK")
    save(root / "97915.png", full(B))
    found.masks["97915"] = [B]
    photo(root / "100.jpg")
    (root / "100.png").write_bytes(b"")
    found.problems.add("100.png")


def write_coift(root: Path) -> Expected:
    """`images` and `masks`, a list beside them that is not read."""
    for name, mask in {"bird_01": A, "insect_02": B}.items():
        photo(root / "images" / f"{name}.jpg")
        save(root / "masks" / f"{name}.png", full(mask))
    (root / "list").mkdir()
    (root / "list" / "test.txt").write_text("bird_01\ninsect_02\n")
    return Expected(masks={"bird_01": [A], "insect_02": [B]})


def _hrsod(root: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Both forms of the masks; returns by name the two objects. `up` is drawn on the turned photo, `raw` on the stored."""
    tall = (W, H)
    objects = {
        "plain": (A, box(20, 4, 5, 5)),
        "up": (box(2, 3, 6, 8, hw=tall), box(12, 3, 6, 20, hw=tall)),
        "raw": (box(1, 1, 8, 8), box(12, 1, 8, 8)),
    }
    for name, (one, two) in objects.items():
        photo(root / "images" / f"{name}.jpg", tag=1 if name == "plain" else 6)
        save(root / "masks" / f"{name}.png", labels((1, one), (2, two)))
        save(root / "masks_max255" / f"{name}.png", full(one | two))
    return objects


def write_hrsod(root: Path) -> Expected:
    found = Expected(masks={name: [one | two] for name, (one, two) in _hrsod(root).items()})
    found.notes[UNTURNED] += 1
    return found


def write_hrsod_ids(root: Path) -> Expected:
    found = Expected(masks={name: list(both) for name, both in _hrsod(root).items()})
    found.notes[UNTURNED] += 1
    return found


def big_writer(val: bool) -> Writer:
    def write(root: Path) -> Expected:
        """`_im`, `_gt`, and `_seg`, which is another network's guess; a mask in RGB; .png and .jpg photos."""
        found = Expected()
        for part, name, suffix, mask in (
            ("test", "2007_aeroplane", ".jpg", A),
            ("test", "2008_dog", ".png", B),
            ("val", "2009_cat", ".jpg", C),
        ):
            photo(root / part / f"{name}_im{suffix}")
            save(root / part / f"{name}_gt.png", np.dstack([full(mask)] * 3) if name == "2008_dog" else soft(mask))
            save(root / part / f"{name}_seg.png", full(~mask))
            if val or part == "test":
                found.masks[f"{part}/{name}" if val else name] = [mask]
                found.notes[UNMATCHED] += 1
        if not val:
            found.masks["2008_dog"] = [B]
        save(root / "test" / "2007_aeroplane_gt.png", soft(C))
        found.masks["test/2007_aeroplane" if val else "2007_aeroplane"] = [C]
        return found

    return write


def voc_writer(void: bool) -> Writer:
    def write(root: Path) -> Expected:
        """`VOCID_CC_im.png`: one image with two classes; palette PNGs; void (255) round an object of value 15."""
        found = Expected()
        for name, mask in {"2007_000129_02": C, "2007_000129_15": A}.items():
            photo(root / f"{name}_im.png")
            ring = box(2, 3, 12, 10) & ~A
            if name.endswith("15") and not void:
                save(root / f"{name}_gt.png", labels((15, A), (255, ring)))
                found.masks[name] = [A]
            elif void:
                save(root / f"{name}_gt.png", full(mask), palette=[level for level in range(256) for _ in range(3)])
                found.masks[name] = [mask]
            else:
                save(root / f"{name}_gt.png", labels((2, mask)), palette=[0, 0, 0, 128, 0, 0, 0, 128, 0])
                found.masks[name] = [mask]
        if not void:
            found.notes[DROPPED] += 1
        return found

    return write


SALIENT: dict[str, Writer] = {
    "dis5k_tr": write_dis,
    "thinobject5k_tr": thin_writer("train"),
    "fss1000": write_fss,
    "duts_tr": beside_writer(_duts),
    "duts_te": beside_writer(_duts_te),
    "ecssd": beside_writer(_ecssd),
    "msra10k": beside_writer(_msra),
    "coift": write_coift,
    "dis_vd": write_dis,
    "hrsod": write_hrsod,
    "hrsod@ids": write_hrsod_ids,
    "thinobject5k_te": thin_writer("test"),
    "big": big_writer(val=False),
    "big@val_and_test": big_writer(val=True),
    "voceval": voc_writer(void=True),
    "voceval@no_void": voc_writer(void=False),
}
