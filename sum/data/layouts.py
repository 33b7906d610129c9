"""How a data set lies on disk or in a bucket. LAYOUTS: `datasets.NAME.kind` -> function from a Source to jobs.

A layout lists and pairs names; its jobs, one an image, read the files and may run in threads. A folder or list that
cannot be used at all is a DataError at once; a single bad file is a Problem, so that all are reported together.
"""

from __future__ import annotations

from sum.data.archives import list_photos
from sum.data.coco import coco_layout
from sum.data.collect import Collector
from sum.data.rasters import decode_raster
from sum.data.records import encode_mask
from sum.data.sa1b import sa1b_layout
from sum.data.sources import (
    Item,
    Job,
    Layout,
    Note,
    Problem,
    Sample,
    Source,
    is_image_name,
    read_photo,
    stem_of,
    told,
)
from sum.data.via import via_layout
from sum.errors import DataError
from sum.storage import join, member_name, read_bytes

STRAY = "file that is no image by its suffix passed over"


def raster_layout(source: Source) -> list[Job]:
    """A folder of photos and a folder of masks, paired by name without suffix; one mask an image."""
    photos, jobs = _by_stem(source, source.folder, suffix=source.image_suffix)
    masks, others = _by_stem(source, source.masks, suffix=source.mask_suffix)
    wanted = _names(source) or sorted(photos.keys() | masks.keys())
    jobs += others
    for stem in wanted:
        if stem in photos and stem in masks:
            jobs.append(_pair_job(source, stem, photos[stem], masks[stem]))
        else:
            jobs.append(_absent(source, stem, folder=source.masks if stem in photos else source.folder))
    return jobs


def images_layout(source: Source) -> list[Job]:
    """A folder of photos without masks."""
    photos, jobs = _by_stem(source, source.folder, suffix=source.image_suffix)
    for stem in _names(source) or sorted(photos):
        found = stem in photos
        jobs.append(_photo_job(source, stem, photos[stem]) if found else _absent(source, stem, folder=source.folder))
    return jobs


LAYOUTS: dict[str, Layout] = {
    "raster": raster_layout,
    "coco": coco_layout,
    "images": images_layout,
    "via": via_layout,
    "sa1b": sa1b_layout,
}
_REPACK = "make the archive again with regular files only, or take it out of the folder"
_PAIR = "add the file, or take the name out"
_EXPORT = "export the mask again: one grey channel, the object above the threshold"


def _by_stem(source: Source, folder: str, *, suffix: str) -> tuple[dict[str, str], list[Job]]:
    """Image files of a folder that end with `suffix`, by name without it, and jobs that tell what is wrong with others."""
    place = join(source.root, folder)
    names, refused = list_photos(place)
    found, jobs = dict[str, str](), [told(Problem(path, reason, _REPACK)) for path, reason in refused]
    for relative in names:
        if not member_name(relative).lower().endswith(suffix.lower()):
            continue  # the masks beside the photos, or the photos beside the masks: the other call reads them
        path, stem = join(place, relative), stem_of(relative)
        if not is_image_name(relative):
            jobs.append(told(Note(STRAY, path)))
        elif stem in found:
            jobs.append(
                told(
                    Problem(
                        path,
                        f"has the same name as {found[stem]} but for the suffix",
                        "rename or delete one of the two",
                    )
                )
            )
        else:
            found[stem] = relative
    if not found:
        raise DataError(f"data set '{source.name}': {place} holds no image file")
    return found, jobs


def _names(source: Source) -> list[str]:
    """The names of the source's list, each once, without image suffix; none when it has no list."""
    if source.names is None:
        return []
    path = join(source.root, source.names)
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file with one name a line ({error})") from error
    lines = [line.strip() for line in lines if line.strip()][source.lines]
    names = [stem_of(line) if is_image_name(line) else line for line in lines]
    if not names:
        raise DataError(f"{path}: the list is empty")
    return list(dict.fromkeys(names))


def _absent(source: Source, stem: str, *, folder: str) -> Job:
    """A job that says that a file is not there which a list or a partner asks for."""
    asked = f"it is listed in {source.names}" if source.names else "the file of that name in the other folder needs it"
    return told(Problem(join(source.root, folder, stem), f"no image file of this name; {asked}", _PAIR))


def _photo_job(source: Source, stem: str, relative: str) -> Job:
    def read() -> list[Item]:
        image = read_photo(source, relative)
        return [image if isinstance(image, Problem) else Sample(image, ())]

    return Job(stem, read)


def _pair_job(source: Source, stem: str, photo: str, mask: str) -> Job:
    return Job(stem, lambda: _read_pair(source, photo, mask))


def _read_pair(source: Source, photo: str, mask: str) -> list[Item]:
    """One photo and its one mask."""
    image, file = read_photo(source, photo), join(source.root, source.masks, mask)
    if isinstance(image, Problem):
        return [image]
    try:
        pixels, remark = decode_raster(read_bytes(file), name=file, threshold=source.threshold)
    except DataError as error:
        return [Problem(file, str(error).removeprefix(f"{file}: "), _EXPORT)]
    if pixels.shape != (image.height, image.width):
        reason = f"the mask has height, width {pixels.shape}, its upright photo {(image.height, image.width)}"
        turned = pixels.shape == (image.width, image.height)
        remedy = "turn the mask as the photo's EXIF tag says" if turned else "export the mask at the photo's size"
        return [Problem(file, reason, remedy)]
    collector = Collector(source, image)
    collector.add(encode_mask(pixels), category=source.task, file=file, where=file)
    if remark:
        collector.note(remark, file)
    return collector.items()
