"""The shape of `datasets:` and `ingest:` of params.yaml: where masks come from and how they are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, Literal

from pydantic import ConfigDict

from sum.limits import PILLOW_LIMIT, at_least, require, share

_STRICT = ConfigDict(extra="forbid")
Task = Literal["unspecified", "salient", "entity", "part"]
Kind = Literal["raster", "coco", "via", "sa1b", "images", "labelme", "yolo", "label_studio"]

_FILES = ("names", "names_lines", "images", "image_suffix")
_LABELS = ("annotations", "images", "categories")
_PIXELS = ("threshold", "values", "drop", "divisor", "channel")
KEYS: dict[str, tuple[str, ...]] = {  # kind -> the keys that only some kinds read
    "raster": (*_FILES, "masks", "mask_suffix", "mode", *_PIXELS, "labelmap", "classes", "on_size_mismatch"),
    "coco": (*_LABELS, "supercategories", "drop_flags", "only_found", "on_size_mismatch"),
    "via": _LABELS,
    "sa1b": ("images", "names", "names_lines"),
    "images": _FILES,
    "labelme": _LABELS,
    "yolo": (*_LABELS, "masks"),
    "label_studio": _LABELS,
}
_SPECIAL = {key for keys in KEYS.values() for key in keys}
MODES: dict[str, tuple[str, ...]] = {  # key of kind raster -> the modes that read it
    "threshold": ("binary",),
    "values": ("index", "instance", "color"),
    "drop": ("index", "instance", "color"),
    "divisor": ("instance",),
    "channel": ("index", "instance"),
    "labelmap": ("color",),
    "classes": ("color",),
}
SPAN = 65_536  # values of a range: those of a 16-bit file


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which images of a set are used; without a number all of them. An image counts when it gives a sample."""

    __pydantic_config__ = _STRICT
    images: int | None = None  # the first so many
    masks: int | None = None  # whole images, until there are so many masks
    order: Literal["name", "file", "shuffled"] = "name"  # by name, as in the annotation file or list, or by seed
    seed: int = 0  # of order 'shuffled'

    def __post_init__(self) -> None:
        for name in ("images", "masks"):
            require(getattr(self, name) is None or getattr(self, name) >= 1, f"{name} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class ExpectConfig:
    """What a complete set holds after selection; `python -m sum audit` and stage validate compare it."""

    __pydantic_config__ = _STRICT
    images: int | None = None
    masks: int | None = None
    point_miou: float | None = None  # per cent: published for SAM ViT-H, one point, best of three outputs

    def __post_init__(self) -> None:
        for name in ("images", "masks"):
            require(getattr(self, name) is None or getattr(self, name) >= 0, f"{name} must be at least 0")
        good = self.point_miou is None or 0 < self.point_miou <= 100
        require(good, f"point_miou is in per cent, in 0..100, got {self.point_miou}")


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One data set: where it lies, how it is laid out, what its masks mean.

    In `images`, `masks` and `annotations`, `*` stands for one folder or part of a name; it becomes part of the image's
    id, and stands for the same text in all three.
    """

    __pydantic_config__ = _STRICT
    kind: Kind  # a name of sum.data.layouts.LAYOUTS
    root: str  # folder, relative to the project, or s3://bucket/prefix
    split: Literal["train", "test", "unlabelled"]
    task: Task = "unspecified"
    licence: str  # SPDX name or a phrase; kept with every model trained on it
    images: str | list[str] = "images"  # folder of the photos below root; coco: or several, searched in turn
    image_suffix: str = ""  # raster, images: only files that end so, such as .jpg or _im; not part of the id
    masks: str = "masks"  # raster: folder of the mask files; yolo: of the label files
    mask_suffix: str = ""  # raster: as image_suffix; `?` and `*` allow several files an image, such as _??_??.png
    annotations: str = "annotations.json"  # coco, via, label_studio: file below root; yolo: data.yaml; labelme: folder
    names: str | None = None  # a file below root with one NAME a line: only these
    names_lines: str = ""  # of that file only the lines START:STOP, counted from 0
    exclude: list[str] = field(default_factory=list)  # images left out: patterns of their ids without the set's name
    mode: Literal["binary", "index", "instance", "color"] = "binary"  # raster: what a pixel's value means
    threshold: int = 127  # binary: a mask is where the grey value is above
    values: list[int | str] = field(default_factory=list)  # only these, as 1..8; instance: the countable classes
    drop: list[int | str] = field(default_factory=lambda: [0])  # values, classes or 0xRRGGBB left out
    divisor: int = 1000  # instance: value = class * divisor + instance; a lone class of `values` is a group, left out
    channel: int | None = None  # index, instance: read this channel of a colour file
    labelmap: str | None = None  # color: CVAT's labelmap.txt below root: names of the colours; others are no mask
    classes: str | None = None  # color: the colours of `masks` are objects, and in this folder those of their classes
    categories: list[str] = field(default_factory=list)  # only masks of these; none: all
    supercategories: list[str] = field(default_factory=list)  # coco: likewise
    drop_flags: list[str] = field(default_factory=lambda: ["iscrowd"])  # coco: annotations with any of these set go
    only_found: bool = False  # coco: images of the file that no folder holds are of another set, not missing
    split_components: bool = False  # every 8-connected region is a mask of its own
    min_area: int = 1  # px: smaller masks are left out and counted
    max_area_share: float = 1.0  # of the image: larger ones likewise
    exif: Literal["transpose", "ignore"] = "transpose"  # a photo's orientation tag, before masks are laid on
    on_size_mismatch: Literal["error", "skip", "resize_mask"] = (
        "error"  # raster, coco: a mask of another size than its photo
    )
    max_pixels: int = PILLOW_LIMIT  # of a photo or mask: a larger one is refused before it is decoded
    max_json_mb: int = 1024  # of an annotation file, likewise
    select: SelectConfig = field(default_factory=SelectConfig)
    expect: ExpectConfig = field(default_factory=ExpectConfig)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> keys that replace these, for audit

    def __post_init__(self) -> None:
        require(0 <= self.threshold < 255, f"threshold must be in 0..254, got {self.threshold}")
        at_least(self, 1, "min_area", "divisor", "max_pixels", "max_json_mb")
        share(self, "max_area_share")
        if self.kind != "sa1b":  # its photos can be used with or without the masks that came with them
            unlabelled, bare = self.split == "unlabelled", self.kind == "images"
            found = f"got kind '{self.kind}' with split '{self.split}'"
            require(unlabelled == bare, f"kind 'images' and split 'unlabelled' belong together, {found}")
        require(
            self.split == "unlabelled" or self.task != "unspecified",
            "human masks need a task: salient, entity or part",
        )
        self._refuse_idle_keys()
        require(isinstance(self.images, str) or self.kind == "coco", "only kind 'coco' takes several folders of images")
        for text in (*self.values, *self.drop):
            require(isinstance(text, int) or _range(text) is not None, f"'{text}' is no number and no range 1..8")
        good = not self.names_lines or _lines(self.names_lines) is not None
        require(good, f"names_lines must be START:STOP with START below STOP, got '{self.names_lines}'")
        require(
            not self.names_lines or self.names is not None,
            "names_lines are lines of the file `names`, which is not set",
        )
        require(self.classes is None or self.labelmap is not None, "classes wants labelmap: the names of their colours")
        for name in self.variants:
            self.variant(name)

    def _refuse_idle_keys(self) -> None:
        """A key that this kind or mode does not read would be obeyed by nobody: raises ValueError."""
        for entry in fields(self):
            name = entry.name
            if name not in _SPECIAL or getattr(self, name) == _default(entry):
                continue
            reads, modes = KEYS[self.kind], MODES.get(name, ())
            require(name in reads, f"kind '{self.kind}' does not read '{name}'; it reads {', '.join(reads)}")
            require(
                not modes or self.mode in modes, f"mode '{self.mode}' does not read '{name}', only {', '.join(modes)}"
            )

    def variant(self, name: str) -> DatasetConfig:
        """This entry with the keys of one of its variants. Raises ValueError naming an impossible key or value."""
        from pydantic import TypeAdapter, ValidationError

        require(
            "variants" not in self.variants[name], f"variants.{name}.variants: a variant has no variants of its own"
        )
        tree = {key: value for key, value in asdict(self).items() if key != "variants"}
        try:
            return TypeAdapter(DatasetConfig).validate_python(_merged(tree, self.variants[name]))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"variants.{name}.{where}: {first['msg'].removeprefix('Value error, ')}") from error


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Reading the data sets into the manifest."""

    __pydantic_config__ = _STRICT
    on_bad: Literal["fail", "skip"] = "fail"  # an unusable image or mask: stop, or list it and go on


def numbers(entries: Sequence[int | str]) -> frozenset[int]:
    """`[3, "5..7"]` -> {3, 5, 6, 7}."""
    found = set[int]()
    for entry in entries:
        low, high = (entry, entry) if isinstance(entry, int) else _range(entry) or (0, -1)
        found |= set(range(low, high + 1))
    return frozenset(found)


def line_range(text: str) -> slice:
    """`"3000:4000"` -> those lines; an empty side is open."""
    low, high = _lines(text) or ("", "")
    return slice(int(low) if low else None, int(high) if high else None)


def _range(text: str) -> tuple[int, int] | None:
    """The two ends; None when it is neither a number nor a rising range of at most SPAN values."""
    found = re.fullmatch(r"(-?\d{1,9})(?:\.\.(-?\d{1,9}))?", text.strip())
    low, high = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
    return (low, high) if 0 <= high - low < SPAN else None


def _lines(text: str) -> tuple[str, str] | None:
    """The two sides, '' for an open one; None when that is no range, or one of no line."""
    found = re.fullmatch(r"(\d*):(\d*)", text)
    if not found or (found[2] and int(found[1] or 0) >= int(found[2])):
        return None
    return found[1], found[2]


def _default(entry: Any) -> object:
    return entry.default if entry.default is not MISSING else entry.default_factory()


def _merged(tree: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the keys of `change`; sections such as `expect` key by key."""
    merged = dict(tree)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
