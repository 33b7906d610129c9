"""Sets whose mask files are maps of values: the part sets and those of table 19, in their original layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sum.data.collect import BARE
from sum.data.folders import STRAY, UNMATCHED
from sum.data.mask_files import DROPPED, GROUP, UNASKED
from sum.data.rasters import MISFIT
from sum.data.selection import EXCLUDED
from tests.data.miniatures.expected import Expected, Writer
from tests.data.miniatures.raster_tools import COLOURS, H, W, box, cut, labels, photo, save

A, B, C, D = box(1, 1, 6, 6), box(10, 1, 6, 6), box(20, 1, 6, 6), box(1, 10, 12, 9)


def mhp_writer(per_image: bool) -> Writer:
    def write(root: Path) -> Expected:
        """Version 1: a grey map a person and one an image; the last 1,000 of a list of 4,000; 3492.jpg broke off."""
        train = [f"{number}.jpg" for number in range(10_000, 13_000)]  # photos that are not asked for
        (root / "train_list.txt").write_text("\n".join([*train, "0007.jpg", "3492.jpg", "4000.jpg", "4001.jpg"]) + "\n")
        for name in ("0007", "3492", "4000", "0001"):
            photo(root / "images" / f"{name}.jpg")
        cut(root / "images" / "3492.jpg")
        save(root / "annotations" / "0007_02_01.png", labels((2, A), (4, B)))
        save(root / "annotations" / "0007_02_02.png", labels((4, C), (18, D)))
        save(root / "annotations" / "4000_02_01.png", labels((1, D)))
        save(root / "annotations" / "4000_02_02.png", labels((11, C), (19, A)))  # no such class
        save(root / "annotations" / "3492_01_01.png", labels((1, A)))
        save(root / "annotations" / "0001_01_01.png", labels((1, A)))
        save(root / "global_seg" / "0007.png", labels((2, A), (4, B | C), (18, D)))
        save(root / "global_seg" / "4000.png", labels((1, D), (11, C), (19, A)))
        save(root / "global_seg" / "3492.png", labels((1, A)))
        whole = {"0007": [A, B | C, D], "4000": [D, C]}  # both persons' shirts are one mask
        found = Expected(masks=whole if per_image else {"0007": [A, B, C, D], "4000": [D, C]})
        found.problems = {"images/4001"}
        found.notes.update({EXCLUDED: 1, UNASKED: 1})
        return found

    return write


def write_mhp_2(root: Path) -> Expected:
    """Version 2: three channels of which the first counts; names without suffix in the list; 58 classes."""
    (root / "list").mkdir()
    (root / "list" / "val.txt").write_text("12\n7\n")
    other = np.full((H, W), 77, np.uint8)
    for name, maps in {"7": [labels((58, A))], "12": [labels((3, A), (30, B)), labels((3, C))]}.items():
        photo(root / "val" / "images" / f"{name}.jpg")
        for person, values in enumerate(maps, start=1):
            path = root / "val" / "parsing_annos" / f"{name}_{len(maps):02}_{person:02}.png"
            save(path, np.dstack((values, other, other)))
    return Expected(masks={"7": [A], "12": [A, B, C]})


def portrait_writer(values: tuple[int, ...]) -> Writer:
    def write(root: Path) -> Expected:
        """Names are UUIDs; 0 background, 1 person, 2..8 the face; a portrait of background alone."""
        found = Expected()
        regions = {1: A, 2: B, 8: C}
        background = ~(A | B | C)
        one, two = "0a1b2c3d-0000-4000-8000-000000000001", "0a1b2c3d-0000-4000-8000-000000000002"
        for name in (one, two):
            photo(root / "images" / "val" / f"{name}.jpg")
        save(root / "annotations" / "val" / f"{one}.png", labels(*regions.items()))
        save(root / "annotations" / "val" / f"{two}.png", np.zeros((H, W), np.uint8))
        (root / "meta.csv").write_text("image_name,user_id\n")
        regions = ({0: background} if 0 in values else {}) | regions
        found.masks[one] = [mask for value, mask in regions.items() if value in values]
        found.notes[UNASKED] = len(regions) - len(found.masks[one])
        found.notes[BARE] = 0 in values or 1
        if 0 in values:
            found.masks[two], found.notes[BARE] = [np.ones((H, W), bool)], 0
        found.notes = +found.notes
        return found

    return write


def write_cityscapes(root: Path) -> Expected:
    """16-bit instance ids in city folders: void, stuff, objects, a group of cars; three other files an image."""
    found = Expected()
    void, road, car, other, group = A, box(1, 10, 12, 9), B, C, box(20, 10, 9, 9)
    for city in ("frankfurt", "lindau"):
        stem = f"{city}/{city}_000000_000294"
        photo(root / "leftImg8bit" / "val" / f"{stem}_leftImg8bit.png")
        regions = [(7, road), (26_000, car), (26_001, other), (25, group), (4, void)]
        save(root / "gtFine" / "val" / f"{stem}_gtFine_instanceIds.png", labels(*regions, kind=np.uint16))
        for extra in ("labelIds", "color"):
            save(root / "gtFine" / "val" / f"{stem}_gtFine_{extra}.png", labels(*((7, road), (25, group))))
        (root / "gtFine" / "val" / f"{stem}_gtFine_polygons.json").write_text("{}")
        found.masks[stem] = [road, car, other]
        found.notes.update({DROPPED: 1, GROUP: 1, UNMATCHED: 2})
    photo(root / "leftImg8bit" / "train" / "aachen" / "aachen_000000_000019_leftImg8bit.png")
    return found


def egohos_writer(part: str) -> Writer:
    def write(root: Path) -> Expected:
        """Labels 0..8; a label of another size; equal and unequal channels; other parts beside this one."""
        found = Expected()
        for other in {"train", "val", "test_indomain", "test_outdomain"} - {part}:
            photo(root / other / "image" / f"{other}.jpg")
            save(root / other / "label" / f"{other}.png", labels((1, D)))
        for name in ("ego4d_1", "thu_2", "ego4d_3", "ego4d_4"):
            photo(root / part / "image" / f"{name}.jpg")
            save(root / part / "contact" / f"{name}.png", labels((1, D)))
        values = labels((1, A), (2, B), (8, C))
        save(root / part / "label" / "ego4d_1.png", values)
        save(root / part / "label" / "thu_2.png", np.dstack([values] * 3))
        save(root / part / "label" / "ego4d_3.png", labels((1, box(1, 1, 3, 3, hw=(H // 2, W // 2)))))
        save(root / part / "label" / "ego4d_4.png", np.dstack([values, values, values + 1]))
        found.masks = {"ego4d_1": [A, B, C], "thu_2": [A, B, C]}
        found.notes.update({MISFIT: 1, BARE: 1})
        found.problems = {f"{part}/label/ego4d_4.png"}
        return found

    return write


def dram_writer(all_classes: bool) -> Writer:
    def write(root: Path) -> Expected:
        """The same name with two artists; `unseen` a folder deeper; lists among the photos; 255 is ignored."""
        found = Expected()
        for place in ("realism/courbet", "realism/manet", "unseen/ukiyo_e/hokusai"):
            photo(root / "test" / place / "1.jpg")
            values = labels((15, A), (8, B), (20, C), (255, D))  # 20 is VOC's monitor, not among the eleven
            save(root / "labels" / place / "1.png", values, palette=COLOURS)
            found.masks[f"{place}/1"] = [B, A, C] if all_classes else [B, A]
            found.notes.update({DROPPED: 1} if all_classes else {UNASKED: 1, DROPPED: 1})
        (root / "test" / "realism.txt").write_text("courbet/1\nmanet/1\n")
        photo(root / "train" / "realism" / "courbet" / "9.jpg")
        found.notes[STRAY] += 1
        return found

    return write


def write_ishape(root: Path) -> Expected:
    """16-bit ids; an object of many pieces stays one; the same name in two sub-sets; a link under val, dead outside."""
    found = Expected()
    scattered = labels((1, A | C), (300, B), (65_535, D), kind=np.uint16)
    for part in ("antenna", "wire"):
        photo(root / part / "val" / "image" / "0001.jpg")
        photo(root / part / "train" / "image" / "0001.jpg")
        save(root / part / "val" / "instance_map" / "0001.png", scattered)
        save(root / part / "train" / "instance_map" / "0001.png", scattered)
        folder = root / part / "val" / "coco_format"
        folder.mkdir()
        (folder / "train2017").symlink_to("../image")
        found.masks[f"{part}/0001"] = [A | C, B, D]
    return found


def gtav_writer(variant: str = "") -> Writer:
    def write(root: Path) -> Expected:
        """Palette PNGs in Cityscapes' colours: the index is the class; void and the own car are no mask."""
        photo(root / "images" / "00001.png")
        values = labels((7, D), (26, A | C), (1, B))
        save(root / "labels" / "00001.png", values, palette=COLOURS)
        masks = {"": [D, A | C], "components": [D, A, C], "all_classes": [B, D, A | C]}[variant]
        found = Expected(masks={"00001": masks})
        found.notes.update({} if variant == "all_classes" else {UNASKED: 1})
        return found

    return write


def write_ibd(root: Path) -> Expected:
    """The candidate of id maps: more roofs than 8 bits count; height maps in a folder of their own."""
    photo(root / "train" / "images" / "city_1.jpg")
    save(root / "train" / "masks" / "city_1.png", labels((1, A), (256, B), (257, C), kind=np.uint16))
    save(root / "train" / "height" / "city_1.tif", np.zeros((H, W), np.uint16))
    return Expected(masks={"city_1": [A, B, C]})


MAPS: dict[str, Writer] = {
    "mhp": mhp_writer(per_image=False),
    "mhp@per_image": mhp_writer(per_image=True),
    "mhp@v2": write_mhp_2,
    "easyportrait": portrait_writer(tuple(range(1, 9))),
    "easyportrait@face": portrait_writer(tuple(range(2, 9))),
    "easyportrait@background": portrait_writer(tuple(range(9))),
    "cityscapes": write_cityscapes,
    "cityscapes@full": write_cityscapes,
    "egohos": egohos_writer("train"),
    "egohos@full": egohos_writer("train"),
    "egohos@val": egohos_writer("val"),
    "egohos@indomain": egohos_writer("test_indomain"),
    "dram": dram_writer(all_classes=False),
    "dram@all_classes": dram_writer(all_classes=True),
    "ishape@id_maps": write_ishape,
    "gtav": gtav_writer(),
    "gtav@components": gtav_writer("components"),
    "gtav@all_classes": gtav_writer("all_classes"),
    "ibd@index_maps": write_ibd,
}
