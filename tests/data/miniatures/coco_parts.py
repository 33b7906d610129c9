"""Fashionpedia and PACO-LVIS: wholes and parts in one file, told apart by supercategory."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from sum.data.coco import flagged
from sum.data.collect import BARE, OTHER
from sum.data.rle import EMPTY, FEW_POINTS, OUTSIDE
from tests.data.miniatures.documents_tools import about, blobs, box, corners, drawn, loose, mark, packed, photo, write
from tests.data.miniatures.expected import Expected, Writer

SLEEVE = [2.5, 3.0, 20.25, 4.5, 11.0, 21.75]
WIDE = [-6.0, 3.0, 40.0, 3.0, 40.0, 9.0, -6.0, 9.0]  # leaves the photo on both sides
FASHION = [
    (0, "shirt, blouse", "upperbody"),
    (6, "pants", "lowerbody"),
    (10, "dress", "wholebody"),
    (14, "hat", "head"),
    (16, "tie", "neck"),
    (17, "glove", "arms and hands"),
    (19, "belt", "waist"),
    (23, "shoe", "legs and feet"),
    (24, "bag, wallet", "others"),
    (31, "sleeve", "garment parts"),
    (34, "buckle", "closures"),
    (44, "sequin", "decorations"),
]


def write_fashionpedia(root: Path) -> tuple[Expected, Expected]:
    """Its val file; what is expected of the main masks, and of the parts."""
    main, part = Expected(), Expected()
    names = ("a1b2.jpg", "c3d4.jpg", "e5f6.jpg")
    for name in (*names, "of_the_test_split.jpg"):
        photo(root / "test" / name)
    images = [
        about(index, name, license=2, isstatic=0, original_url="http://x/y.jpg") for index, name in enumerate(names)
    ]
    rows = [
        mark(1, 0, [corners(1, 1, 10, 12)], category_id=0, attribute_ids=[115, 225]),
        mark(2, 0, packed(blobs(1)), category_id=31),  # an RLE of a single garment, no crowd
        mark(3, 0, [SLEEVE, corners(24, 2, 5, 6)], category_id=31),
        mark(4, 0, loose(blobs(2)), category_id=44, iscrowd=1),
        mark(5, 1, [SLEEVE], category_id=10),
        mark(6, 1, [WIDE], category_id=23),
        mark(7, 2, [[1.0, 1.0, 5.0, 5.0]], category_id=34),  # two points
        mark(8, 2, packed(blobs(3)), category_id=34),
    ]
    categories = [{"id": key, "name": name, "supercategory": of, "level": 2} for key, name, of in FASHION]
    tree = {"info": {}, "licenses": [], "attributes": [{"id": 115, "name": "symmetrical"}], "categories": categories}
    write(root / "instances_attributes_val2020.json", tree | {"images": images, "annotations": rows})
    main.masks = {"a1b2": [box(1, 1, 10, 12)], "c3d4": [drawn(SLEEVE), drawn(WIDE)]}
    main.notes = Counter({OTHER: 4, flagged("iscrowd"): 1, OUTSIDE: 1, BARE: 1})
    part.masks = {"a1b2": [blobs(1), drawn(SLEEVE, corners(24, 2, 5, 6))], "e5f6": [blobs(3)]}
    part.notes = Counter({OTHER: 3, flagged("iscrowd"): 1, FEW_POINTS: 1, BARE: 1})
    return main, part


def fashionpedia_writer(number: int) -> Writer:
    """A writer of Fashionpedia that expects the main masks (0) or the parts (1)."""
    return lambda root: write_fashionpedia(root)[number]


def write_paco(root: Path) -> tuple[Expected, Expected]:
    """PACO-LVIS below a COCO folder; expected: parts alone, and objects with parts."""
    parts, both = Expected(), Expected()
    names = ("train2017/000000000036.jpg", "val2017/000000000036.jpg", "train2017/000000000009.jpg")
    for name in (*names, "train2017/000000000001.jpg"):
        photo(root / "coco" / name)
    images = [
        about(2**47 + 5, names[0], not_exhaustive_category_ids=[4], neg_category_ids=[]),
        about(36, names[1], not_exhaustive_category_ids=[], neg_category_ids=[7]),
        about(9, "", coco_url=f"http://images.cocodataset.org/{names[2]}") | {"file_name": None},
    ]

    def row(index: int, image: int, segmentation: Any, category: int, of: int) -> dict[str, Any]:
        """LVIS has no iscrowd."""
        plain = mark(index, image, segmentation, category_id=category, obj_ann_id=of, attribute_ids=[])
        return {key: value for key, value in plain.items() if key != "iscrowd"}

    wheels = [corners(2, 14, 5, 5), corners(20, 14, 5, 5)]
    rows = [
        row(1, 2**47 + 5, packed(box(0, 6, 30, 14)), 207, 1),
        row(2, 2**47 + 5, wheels, 2050, 1),  # parts of one name in one annotation
        row(3, 2**47 + 5, [], 2051, 1),  # an empty list
        row(4, 36, [SLEEVE], 207, 4),
        row(5, 36, packed(blobs(5)), 2050, 4),
        row(6, 9, [SLEEVE], 207, 6),
    ]
    categories = [
        {"id": 207, "name": "car_(automobile)", "supercategory": "OBJECT", "image_count": 1},
        {"id": 2050, "name": "car_(automobile):wheel", "supercategory": "PART"},
        {"id": 2051, "name": "car_(automobile):mirror", "supercategory": "PART"},
    ]
    tree = {"images": images, "annotations": rows, "categories": categories, "part_categories": [], "attributes": []}
    write(root / "paco_lvis_v1_val.json", tree)
    stems = [name.removesuffix(".jpg") for name in names]
    two = box(2, 14, 5, 5) | box(20, 14, 5, 5)
    parts.masks, parts.notes = {stems[0]: [two], stems[1]: [blobs(5)]}, Counter({OTHER: 3, EMPTY: 1, BARE: 1})
    both.masks = {
        stems[0]: [box(0, 6, 30, 14), two],
        stems[1]: [drawn(SLEEVE), blobs(5)],
        stems[2]: [drawn(SLEEVE)],
    }
    both.notes = Counter({EMPTY: 1})
    return parts, both


def paco_writer(number: int) -> Writer:
    """A writer of PACO that expects parts (0) or objects and parts (1)."""
    return lambda root: write_paco(root)[number]
