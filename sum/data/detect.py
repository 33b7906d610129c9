"""What a folder, file or bucket prefix may hold: every kind that fits, with the keys of its entry, best first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from sum.data.detect_rasters import rasters
from sum.data.documents import read_document, read_json
from sum.data.label_studio import photo_path
from sum.data.listing import UNREADABLE, Candidate, Found, Listing, part_of, place_of, stems
from sum.data.photo_index import PhotoIndex
from sum.errors import DataError

SAMPLE = 8  # files of a folder that are looked at
JSON_MB = 1024
_OUTLINES = {"regions", "shapes", "result", "predictions", "completions"}  # keys of VIA, labelme and Label Studio
_TEXT = 4096  # characters: no path is longer
CROWDED = 0.9  # share of iscrowd annotations above which they are the tool's habit: CVAT writes brush masks so
LOOKED_FOR = (
    "COCO, VIA, Label Studio, labelme and SA-1B JSON, YOLO-seg labels, tar shards of SA-1B, "
    "a folder of photos beside one of masks, photos alone"
)

Reading = Iterator[Candidate | tuple[str, str]]


def detect(path: str) -> Found:
    """All readings of `path`. Raises NotFound, DataError when there is no file at all."""
    root, only = place_of(path)
    listing = Listing(root, only=only)
    found, refused = list[Candidate](), list[tuple[str, str]]()
    for look in (_documents, _tars, _yolo, rasters, _photos):
        for item in look(listing):
            if isinstance(item, Candidate):
                found.append(item)
            else:
                refused.append(item)
    return Found(sorted(found, key=lambda candidate: -candidate.rank), refused)


def kind_of_json(tree: Any) -> str:
    """coco, via, sa1b, labelme, label_studio, or '' for JSON of another kind."""
    if isinstance(tree, list):
        tasks = tree and all(isinstance(task, dict) and isinstance(task.get("data"), dict) for task in tree[:SAMPLE])
        return "label_studio" if tasks else ""
    if not isinstance(tree, dict):
        return ""
    if "shapes" in tree and "imagePath" in tree:
        return "labelme"
    if isinstance(tree.get("images"), list) and isinstance(tree.get("annotations"), list):
        return "coco"
    if isinstance(tree.get("image"), dict) and isinstance(tree.get("annotations"), list):
        return "sa1b"
    rows = tree.get("_via_img_metadata", tree)
    rows = list(rows.values())[:SAMPLE] if isinstance(rows, dict) else []
    return "via" if rows and all(isinstance(row, dict) and "regions" in row for row in rows) else ""


def _thin(tree: dict[str, Any]) -> dict[str, Any]:
    """What `kind_of_json` and the candidates ask of an object; outlines and embedded images are most of a file."""
    for name, kept in (("segmentation", "iscrowd"), ("file_name", "file_name")):  # a row of COCO or SA-1B
        if name in tree and not {"annotations", "shapes", "regions", "data"} & tree.keys():
            return {kept: tree.get(kept)}
    return {key: _short(key, value) for key, value in tree.items()}


def _short(key: str, value: Any) -> Any:
    """A value with its type: of lists those of objects stay, but for regions, shapes and results."""
    if isinstance(value, list) and (key in _OUTLINES or not any(isinstance(row, dict) for row in value)):
        return []
    return value[:_TEXT] if isinstance(value, str) else value


def _documents(listing: Listing) -> Reading:
    """JSON files: one a set, or one a photo."""
    folders = defaultdict[str, list[str]](list)
    for name in listing.named(".json"):
        folders[PurePosixPath(name).parent.as_posix()].append(name)
    single = dict[str, list[str]]()
    for folder, names in folders.items():
        for name in names[:SAMPLE]:
            try:
                tree = read_json(listing.path(name), max_mb=JSON_MB, shrink=_thin)
            except DataError as error:
                yield UNREADABLE, str(error)
                continue
            kind = kind_of_json(tree)
            if not kind:
                yield "JSON", f"{name} is none of the known kinds"
            elif kind in _WHOLE:
                yield _WHOLE[kind](listing, name, tree)
            else:
                single.setdefault(kind, []).append(folder)
    for kind, places in single.items():
        yield _SINGLE[kind](listing, _common(places))


def _coco(listing: Listing, name: str, tree: dict[str, Any]) -> Candidate:
    photos = [str(row.get("file_name")) for row in tree["images"] if isinstance(row, dict)]
    folder, count = listing.folder_of(photos)
    keys: dict[str, object] = {"images": folder, "annotations": name}
    why = f"{name} has COCO's lists 'images' and 'annotations'; {count} of its {len(photos)} photos lie below {folder}"
    rows = [row for row in tree["annotations"] if isinstance(row, dict)]
    crowd = sum(bool(row.get("iscrowd")) for row in rows)
    if rows and crowd >= CROWDED * len(rows):
        keys["drop_flags"] = []
        why += f"; {crowd} of {len(rows)} annotations have iscrowd 1, as CVAT writes brush masks: they are kept"
    part, split = part_of(name)
    return Candidate("coco", listing.root, why, keys, part, split, 9)


def _via(listing: Listing, name: str, tree: dict[str, Any]) -> Candidate:
    rows = [row for row in tree.get("_via_img_metadata", tree).values() if isinstance(row, dict)]
    folder, count = listing.folder_of([str(row.get("filename")) for row in rows])
    why = f"{name} has VIA's entries with 'regions'; {count} of {len(rows)} photos lie below {folder}"
    part, split = part_of(name)
    return Candidate("via", listing.root, why, {"images": folder, "annotations": name}, part, split, 9)


def _label_studio(listing: Listing, name: str, tree: list[dict[str, Any]]) -> Candidate:
    index, count = PhotoIndex(listing.images), 0
    for task in tree:
        try:
            count += bool(index.find(photo_path(task["data"])))
        except (ValueError, KeyError, TypeError, AttributeError):  # only the first SAMPLE are known to be tasks
            continue
    folder = listing.photo_folder()
    why = f"{name} is a list of Label Studio's tasks; {count} of {len(tree)} photos lie below {folder}"
    part, split = part_of(name)
    return Candidate("label_studio", listing.root, why, {"images": folder, "annotations": name}, part, split, 9)


def _labelme(listing: Listing, folder: str) -> Candidate:
    why = f"the JSON files below {folder} have labelme's 'shapes' and 'imagePath'"
    return Candidate(
        "labelme", listing.root, why, {"images": listing.photo_folder(), "annotations": folder}, "", "train", 9
    )


def _sa1b(listing: Listing, folder: str) -> Candidate:
    why = f"the JSON files below {folder} have SA-1B's 'image' and 'annotations'"
    return Candidate("sa1b", listing.root, why, {"images": folder}, "", "train", 9)


_WHOLE: dict[str, Callable[..., Candidate]] = {"coco": _coco, "via": _via, "label_studio": _label_studio}
_SINGLE: dict[str, Callable[[Listing, str], Candidate]] = {"labelme": _labelme, "sa1b": _sa1b}


def _common(folders: list[str]) -> str:
    """The deepest folder that is above all of these."""
    parts = [() if folder == "." else tuple(folder.split("/")) for folder in dict.fromkeys(folders)]
    shared = list[str]()
    for words in zip(*parts, strict=False):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    return "/".join(shared) or "."


def _tars(listing: Listing) -> Reading:
    """Tar shards: SA-1B is the one set that comes so."""
    shards = listing.named(".tar")
    if shards:
        folder = _common([PurePosixPath(name).parent.as_posix() for name in shards])
        yield Candidate(
            "sa1b", listing.root, f"{len(shards)} tar file(s) below {folder}", {"images": folder}, "", "train", 8
        )


def _yolo(listing: Listing) -> Reading:
    """Text files of numbers whose names are those of photos in the parallel folder."""
    texts, places = set(listing.files), set[tuple[str, str]]()
    for folder, names in listing.folders.items():
        for labels in dict.fromkeys((_parallel(folder), folder)):
            prefix = "" if labels == "." else f"{labels}/"
            files = [f"{prefix}{stem}.txt" for stem in sorted(stems(names))]
            files = [file for file in files if file in texts]
            if files and not any(folder.startswith(f"{above}/") or above == "." for above, _ in places):
                parts = set(map(part_of, [PurePosixPath(file).parent.as_posix() for file in files]))
                if len(parts) > 1:
                    continue  # the folders below are parts of their own
                shape = _lines(listing, files[:SAMPLE])
                if shape == "boxes":
                    yield "yolo", f"the lines of {files[0]} have 5 numbers: these are boxes, not masks"
                elif shape == "polygons":
                    places.add((folder, labels))
    names_file = next((name for name in listing.files if name.lower().endswith((".yaml", ".yml"))), "")
    names_file = names_file or next((name for name in listing.files if name.endswith("classes.txt")), "")
    for folder, labels in sorted(places):
        part, split = part_of(folder)
        why = f"the text files below {labels} have lines of class and polygon, for the photos below {folder}"
        keys: dict[str, object] = {"images": folder, "masks": labels, "annotations": names_file}
        yield Candidate("yolo", listing.root, why, keys, part, split, 9)


def _parallel(folder: str) -> str:
    """`train/images` -> `train/labels`, `images/val` -> `labels/val`."""
    return "/".join("labels" if word == "images" else word for word in folder.split("/"))


def _lines(listing: Listing, files: list[str]) -> str:
    """What the lines of these label files are: polygons, boxes or '' for neither."""
    counts = list[int]()
    for file in files:
        for line in read_document(listing.path(file), max_mb=16).decode("utf-8", "replace").splitlines():
            words = line.split()
            if words and not all(word.lstrip("-").replace(".", "", 1).replace("e-", "", 1).isdigit() for word in words):
                return ""
            counts += [len(words)] if words else []
    if not counts:
        return ""
    return "boxes" if all(count == 5 for count in counts) else "polygons" if max(counts) >= 7 else ""


def _photos(listing: Listing) -> Reading:
    """Photos without masks, should nothing else be there."""
    if listing.images and not listing.only:
        folder = listing.photo_folder()
        why = f"{len(listing.images)} image file(s) below {folder}, taken as photos without masks"
        yield Candidate("images", listing.root, why, {"images": folder}, "", "unlabelled", 0)
    elif not listing.images:
        yield "images", "no image file by its suffix"
