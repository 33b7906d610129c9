"""EntitySeg as downloaded: three folders of different depth, merged JSON files, the val images among the train images."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sum.data.coco import ELSEWHERE, flagged
from sum.data.collect import BARE
from sum.data.rle import EMPTY
from tests.data.miniatures.documents_tools import about, blobs, box, loose, mark, packed, photo, write
from tests.data.miniatures.expected import Expected, Writer

FOLDERS = {
    "entity_01_11580": "entity_01_11580/images_merge",
    "entity_02_11598": "entity_02_11598/images",
    "entity_03_10049": "entity_03_10049/images_03_10049",
}
CATEGORIES = [
    {"id": 0, "name": "unknown", "supercategory": "unknown"},
    {"id": 1, "name": "sky", "supercategory": "stuff"},
]
NAMES = {
    "entity_01_11580": ("1_o#1.jpg", "2_o.jpg"),
    "entity_02_11598": ("3_o.jpg", "same_o.jpg"),
    "entity_03_10049": ("5_o.jpg", "6_o.jpg"),
}


def entity(index: int, image: int, segmentation: Any, **more: Any) -> dict[str, Any]:
    return mark(index, image, segmentation, **({"category_id_ori": 7, "attribute": {}, "remove": 0} | more))


def write_train(root: Path) -> Expected:
    """Photos of all folders; removed, crowd and empty annotations; a photo whose URL was dead; one with an EXIF tag."""
    of = Expected()
    images, rows = list[dict[str, Any]](), list[dict[str, Any]]()
    for number, folder in enumerate(FOLDERS):
        name, file = f"{folder}/train_{number}.jpg", root / FOLDERS[folder] / f"train_{number}.jpg"
        photo(file, turned=number == 1)
        images.append(about(number + 1, name))
        masks = [box(0, 0, 16, 24), box(16, 0, 16, 24) & blobs(number)]
        rows += [entity(len(rows) + k, number + 1, packed(mask)) for k, mask in enumerate(masks)]
        of.masks[name.removesuffix(".jpg")] = masks
    images += [about(4, "entity_02_11598/dead_url.jpg"), about(5, "entity_03_10049/bare.jpg")]
    photo(root / FOLDERS["entity_03_10049"] / "bare.jpg")
    rows += [
        entity(6, 1, packed(blobs(9)), iscrowd=1),
        entity(7, 1, loose(blobs(10)), remove=1),
        entity(8, 2, []),
        entity(9, 4, packed(blobs(3))),
    ]
    write(root / "entityv2_010203_entity_train.json", {"images": images, "annotations": rows, "categories": CATEGORIES})
    write_merged_val(root)  # its annotation ids are those of the train file again
    of.notes = Counter({flagged("iscrowd"): 1, flagged("remove"): 1, EMPTY: 1, BARE: 1})
    of.problems = {"entity_02_11598/dead_url.jpg"}
    return of


def write_merged_val(root: Path) -> dict[str, Expected]:
    """The val file of all three folders and its photos; by folder, what of it belongs to the set of that folder."""
    found = dict[str, Expected]()
    images, rows = list[dict[str, Any]](), list[dict[str, Any]]()
    for folder, names in NAMES.items():
        found[folder] = Expected()
        for name in names:
            index, mask = len(images) + 1, blobs(20 + len(images))
            photo(root / FOLDERS[folder] / name)
            images.append(about(index, f"{folder}/{name}"))
            rows += [entity(2 * index - 2, index, packed(mask)), entity(2 * index - 1, index, loose(~mask))]
            found[folder].masks[f"{folder}/{name.removesuffix('.jpg')}"] = [mask, ~mask]
        rows.append(entity(100 + index, index, packed(box(1, 1, 3, 3)), remove=1))
        found[folder].notes = Counter({flagged("remove"): 1, ELSEWHERE: 4})
    photo(root / FOLDERS["entity_01_11580"] / "same_o.jpg")  # a train photo of the name that a val photo has elsewhere
    write(root / "entityv2_010203_entity_val.json", {"images": images, "annotations": rows, "categories": CATEGORIES})
    return found


def val_writer(folder: str) -> Writer:
    """A writer of the merged val set that expects the part of one folder."""
    return lambda root: write_merged_val(root)[folder]
