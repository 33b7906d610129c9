"""iShape, TrashCan and a COCO candidate for InstanceBuilding: instances of table 19."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sum.data.coco import TWICE
from sum.data.collect import BARE
from sum.data.rle import EMPTY, FEW_POINTS, OUTSIDE
from tests.data.miniatures.documents_tools import about, blobs, box, corners, drawn, loose, mark, packed, photo, write
from tests.data.miniatures.expected import Expected

SUBSETS = ("antenna", "branch", "fence", "hanger", "log", "wire")


def write_ishape(root: Path) -> Expected:
    """Six sub-sets with the same names in each; links named after train, under val too; masks of many pieces."""
    of = Expected()
    for number, subset in enumerate(SUBSETS):
        for split in ("train", "val"):
            place = root / subset / split
            rows, images = [], [about(index, f"{index}.jpg") for index in range(2)]
            for index in range(2):
                photo(place / "image" / f"{index}.jpg")
                mask = blobs(10 * number + index + (split == "train") * 1000)
                rows += [mark(2 * index, index, packed(mask)), mark(2 * index + 1, index, loose(~mask))]
                if split == "val":
                    of.masks[f"{subset}/{index}"] = [mask, ~mask]
            tree = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": subset}]}
            write(place / "coco_format-mask_encoding=rle-instances_2017.json", tree)
            (place / "instance_map").mkdir()
            links = place / "coco_format"
            (links / "annotations").mkdir(parents=True)
            (links / "train2017").symlink_to("../image")
            target = "../../coco_format-mask_encoding=rle-instances_2017.json"
            (links / "annotations" / "instances_train2017.json").symlink_to(target)
    return of


def write_trashcan(root: Path) -> Expected:
    """Both versions of the same photos; polygons of two points, boxes outside the photo, images without a mask."""
    of = Expected()
    for version in ("instance_version", "material_version"):
        place = root / "dataset" / version
        names = [f"vid_000002_frame000001{number}.jpg" for number in range(4)]
        for name in names:
            photo(place / "train" / name)
        photo(place / "val" / "vid_000010_frame0000010.jpg")
        images = [about(index + 1, name) for index, name in enumerate(names)]
        slant = [3.0, 2.0, 28.0, 9.0, 12.0, 21.0]
        rows = [
            mark(1, 1, [corners(2, 3, 8, 9)], bbox=[2, 3, 8, 9]),
            mark(2, 1, [[4, 4, 9, 9]], bbox=[4, 4, 5, 5]),  # two points alone: no mask is left
            mark(3, 2, [slant, [1, 1, 2, 2]]),  # two points beside a sound polygon
            mark(4, 2, [corners(-9, 10, 14, 6)], bbox=[-9, 10, 14, 6]),  # leaves the photo
            mark(5, 3, [corners(60, 60, 9, 9)], bbox=[60, 60, 9, 9]),  # lies outside
            mark(1, 3, [corners(5, 5, 4, 4)]),  # the id of the first
        ]
        tree = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "rov", "supercategory": "rov"}]}
        write(place / "instances_train_trashcan.json", tree)
        write(place / "instances_val_trashcan.json", {"images": [about(1, "x.jpg")], "annotations": []})
    stems = [name.removesuffix(".jpg") for name in names]
    of.masks = {stems[0]: [box(2, 3, 8, 9)], stems[1]: [drawn(slant), box(0, 10, 5, 6)], stems[2]: [box(5, 5, 4, 4)]}
    of.notes = Counter({FEW_POINTS: 2, OUTSIDE: 1, EMPTY: 1, TWICE: 1, BARE: 1})
    return of


def write_ibd(root: Path) -> Expected:
    """A guess: one COCO file of roofs beside the photos and height maps of the same names."""
    of = Expected()
    rows, images = [], []
    for index in range(3):
        photo(root / "train" / "images" / f"city_{index}.jpg")
        photo(root / "train" / "height" / f"city_{index}.png")  # never an image of the set
        images.append(about(index, f"city_{index}.jpg"))
        rows.append(mark(index, index, [corners(3 + index, 4, 9, 8)]))
        of.masks[f"city_{index}"] = [box(3 + index, 4, 9, 8)]
    tree = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "roof"}]}
    write(root / "train" / "annotations.json", tree)
    return of
