"""SA-1B: photos with their JSON, unpacked or in tar shards of different prefixes."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

from sum.data.collect import LARGE
from sum.data.rle import EMPTY
from tests.data.miniatures.documents_tools import H, W, blobs, box, packed, photo, write
from tests.data.miniatures.expected import Expected

WHOLE = box(0, 0, W, H)


def mask_row(index: int, mask: Any) -> dict[str, Any]:
    """One annotation with all keys of the release."""
    scores = {"predicted_iou": 0.93, "stability_score": 0.98, "point_coords": [[3.5, 4.5]], "crop_box": [0, 0, W, H]}
    return {
        "id": 5_000_000_000 + index,
        "segmentation": packed(mask),
        "bbox": [0, 0, 1, 1],
        "area": int(mask.sum()),
    } | scores


def write_pair(folder: Path, number: int, *masks: Any) -> None:
    """sa_N.jpg and sa_N.json."""
    name = f"sa_{number}"
    photo(folder / f"{name}.jpg")
    about = {"image_id": number, "width": W, "height": H, "file_name": f"{name}.jpg"}
    rows = [mask_row(index, mask) for index, mask in enumerate(masks)]
    write(folder / f"{name}.json", {"image": about, "annotations": rows})


def write_folder(root: Path) -> Expected:
    """What split train makes of an unpacked shard: an empty mask and one over the whole image go, half pairs too."""
    write_pair(root, 1, blobs(1), blobs(1) & False, WHOLE)
    write_pair(root, 2, blobs(2), box(3, 3, 4, 5))
    write_pair(root, 3, blobs(3))
    write_pair(root, 4, blobs(4))
    (root / "sa_3.jpg").unlink()
    (root / "sa_4.json").unlink()
    masks = {"sa_1": [blobs(1)], "sa_2": [blobs(2), box(3, 3, 4, 5)]}
    return Expected(masks, Counter({EMPTY: 1, LARGE: 1}), {"sa_3.json", "sa_4.jpg"})


def write_photos(root: Path) -> Expected:
    """What split unlabelled makes of it: photos alone, whatever JSON there is."""
    write_folder(root)
    (root / "sa_1.json").write_text("not JSON")
    return Expected({"sa_1": [], "sa_2": [], "sa_4": []})


def write_shards(root: Path) -> Expected:
    """The same pairs, packed."""
    want = write_folder(root)
    pack(root)
    half = {path: tar_name(root, path) for path in want.problems}
    return Expected(want.masks, want.notes, set(half.values()))


def tar_name(root: Path, name: str) -> str:
    """The address below the root of a file in one of its shards, found by tarfile."""
    for shard in sorted(root.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                if Path(member.name).name == name:
                    return f"{shard.name}!/{member.name.removeprefix('./')}#{member.offset_data}+{member.size}"
    raise FileNotFoundError(name)


def pack(root: Path) -> None:
    """Put the pairs below the root into two shards, one with the prefix ./ and one with a folder."""
    for shard, numbers, prefix in (("sa_000000", (1, 2), "./"), ("sa_000001", (3, 4), "sa_000001/")):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for path in sorted(root.glob("sa_*.*")):
                if path.suffix in (".jpg", ".json") and int(path.stem.removeprefix("sa_")) in numbers:
                    tar.add(path, prefix + path.name)
                    path.unlink()
