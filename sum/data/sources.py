"""What every layout takes and gives: a Source in, jobs out; a job reads one image and tells what it found."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pycocotools import mask as coco

from sum.data.fingerprints import perceptual_hashes
from sum.data.images import decode_image, frame_sizes
from sum.data.records import ImageRecord, MaskRecord
from sum.errors import DataError
from sum.limits import PILLOW_LIMIT
from sum.storage import NotFound, join, member_name, read_bytes

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One entry of the data set table; sum.data_settings.DatasetConfig says what the fields mean."""

    name: str
    root: str
    split: str
    task: str
    licence: str
    images: str | tuple[str, ...] = "images"
    image_suffix: str = ""
    masks: str = "masks"
    mask_suffix: str = ""
    annotations: str = "annotations.json"
    names: str | None = None
    lines: slice = field(default_factory=lambda: slice(None))
    exclude: tuple[str, ...] = ()
    mode: str = "binary"
    threshold: int = 127
    values: frozenset[int] = frozenset()
    drop: frozenset[int] = frozenset({0})
    divisor: int = 1000
    channel: int | None = None
    labelmap: str | None = None
    classes: str | None = None
    colours: Mapping[int, str] = field(default_factory=dict)  # what `labelmap` says; filled in by the layout
    categories: tuple[str, ...] = ()
    supercategories: tuple[str, ...] = ()
    drop_flags: tuple[str, ...] = ("iscrowd",)
    only_found: bool = False
    split_components: bool = False
    min_area: int = 1
    max_area_share: float = 1.0
    exif: str = "transpose"
    on_size_mismatch: str = "error"
    max_pixels: int = PILLOW_LIMIT
    max_json_mb: int = 1024

    @property
    def folder(self) -> str:
        """The one folder of photos, of a kind that has just one."""
        if not isinstance(self.images, str):
            raise TypeError(f"data set '{self.name}' has several folders of images")
        return self.images


@dataclass(frozen=True, slots=True)
class Sample:
    """An image that can be used, with its masks."""

    image: ImageRecord
    masks: tuple[MaskRecord, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that cannot be used; `ingest.on_bad` decides what follows."""

    file: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something left out or read in a special way by rule; it is counted, and never stops the stage."""

    reason: str
    file: str


Item = Sample | Problem | Note


@dataclass(frozen=True, slots=True)
class Job:
    """Reads one image when it is called, and tells what it found."""

    name: str  # the image's id without the data set's name; '' for a finding of the listing that is of no image
    read: Callable[[], Iterable[Item]]


Layout = Callable[[Source], list[Job]]


def told(item: Item) -> Job:
    """A job that only says what the listing found out."""
    return Job("", lambda: [item])


def stem_of(relative: str) -> str:
    """`a/b.c.jpg` -> `a/b.c`; of an archive's member `x.tar!/a/b.jpg#512+90` -> `x/a/b`."""
    return PurePosixPath(member_name(relative)).with_suffix("").as_posix()


def is_image_name(relative: str) -> bool:
    """Whether the suffix, in any case, is that of an image."""
    return PurePosixPath(member_name(relative)).suffix.lower() in SUFFIXES


def read_photo(
    source: Source, relative: str, *, name: str = "", frames: Collection[tuple[int, int]] = ()
) -> ImageRecord | Problem:
    """Read and decode a photo of the source as a whole; relative: its path below the folder of photos.

    name: its id within the set, if not the path without suffix. frames: the sizes (height, width) of its masks: when
    they are all that of the photo as stored and not that of the upright one, its orientation tag is ignored
    (`ImageRecord.exif` says so). A photo whose sides are equal, or that is upside down, is always turned.
    """
    path = join(source.root, source.folder, relative)
    try:
        data = read_bytes(path)
        upright, stored = frame_sizes(data, name=path, max_pixels=source.max_pixels)
        only_stored = bool(frames) and upright != stored and all(frame == stored for frame in frames)
        exif = "ignore" if only_stored else source.exif
        pixels = decode_image(data, name=path, exif=exif, max_pixels=source.max_pixels)
    except NotFound:
        return Problem(path, "the image is missing", "add the file, or take its entry out of the list")
    except DataError as error:
        return Problem(path, str(error).removeprefix(f"{path}: "), "download or export the file again, or delete it")
    phash, mirror_phash = perceptual_hashes(pixels)
    return ImageRecord(
        image_id=f"{source.name}/{name or stem_of(relative)}",
        dataset=source.name,
        path=path,
        sha256=hashlib.sha256(data).hexdigest(),
        height=pixels.shape[0],
        width=pixels.shape[1],
        task=source.task,
        split=source.split,
        licence=source.licence,
        exif=exif,
        phash=phash,
        mirror_phash=mirror_phash,
    )


def make_mask(image: ImageRecord, rle: str, *, number: int, category: str, file: str) -> MaskRecord:
    """The record of a mask that is not empty; rle: COCO compressed counts at the image's size, file: its origin."""
    code = {"size": [image.height, image.width], "counts": rle.encode("ascii")}
    x, y, width, height = (int(edge) for edge in coco.toBbox(code))
    return MaskRecord(
        mask_id=f"{image.image_id}#{number}",
        image_id=image.image_id,
        dataset=image.dataset,
        task=image.task,
        split=image.split,
        area=int(coco.area(code)),
        x0=x,
        y0=y,
        x1=x + width - 1,
        y1=y + height - 1,
        rle=rle,
        category=category,
        source=file,
    )
