"""One mask file -> its masks. MODES: `datasets.NAME.mode` -> what a value means. EXIF tags of masks are not followed.

- binary: one mask, where the grey value is above `threshold`.
- index: a mask a value, but those of `drop` and, when `values` names some, all others.
- instance (as Cityscapes): value = class * divisor + number. A value of at least `divisor` is one object; below it, the
  value is a class as a whole: one region, unless `values` names the class as countable, for then it is a group of
  objects that nobody told apart. `drop` and `values` are of classes: those of `drop` are left out, and, when `values`
  names some, objects of any other class too; regions of other classes stay (put them in `drop` to have objects alone).
- color: a mask a colour; black and the void colour of VOC are none. `drop` and `values` are of colours, 0xRRGGBB.
  With `labelmap` the category is the class that it names, of the colour itself or, with `classes`, of most of the
  object's pixels in the file of the same name there.

Whatever is left out is counted, except value 0 and black when they are in `drop`: they are the background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sum.data.images import open_picture
from sum.data.label_map import BACKGROUND, UNNAMED, class_file, class_of
from sum.data.records import encode_mask
from sum.data.rle import coder
from sum.data.sources import Source
from sum.errors import DataError

SPREAD = "the mask's pixels are only 0 and 1: read as background and object"
GREYS = "mask with flat regions between black and white read by threshold: it may be an index map (mode index)"
DROPPED = "value in `drop` left out"
UNASKED = "value that is not in `values` left out"
GROUP = "group of objects of one class left out"
VOID = "void colour (224, 224, 192) left out"
MOST = 4096  # values of an index map; a photo has more
_VOID = 0xE0E0C0


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one file holds."""

    file: str
    hw: tuple[int, int]
    masks: list[tuple[str, str]]  # category ('' for that of the task) and RLE counts at `hw`
    remarks: list[str]  # reasons of notes


def binary(data: bytes, file: str, source: Source) -> Drawn:
    """The one mask of a grey file. DataError when it is unreadable, coloured or empty."""
    mask, remark = decode_raster(data, name=file, threshold=source.threshold, max_pixels=source.max_pixels)
    return Drawn(file, mask.shape, [("", encode_mask(mask))], [remark] if remark else [])


def index(data: bytes, file: str, source: Source) -> Drawn:
    """A mask a value; the category is the value."""
    values = _values(data, file, source)
    drawn, code = Drawn(file, values.shape, [], []), coder(values)
    for value in _distinct(values, file):
        out = _left_out(value, source)
        _put(drawn, code, value, category=str(value), out=out)
    return drawn


def instance(data: bytes, file: str, source: Source) -> Drawn:
    """A mask an object and a mask a region; the category is the class."""
    values = _values(data, file, source)
    drawn, code = Drawn(file, values.shape, [], []), coder(values)
    for value in _distinct(values, file):
        whole = value < source.divisor
        kind = value if whole else value // source.divisor
        out = DROPPED if kind in source.drop else ""
        if not out and source.values:
            countable = kind in source.values
            out = GROUP if whole and countable else "" if whole or countable else UNASKED
        _put(drawn, code, value, category=str(kind), out=out)
    return drawn


def color(data: bytes, file: str, source: Source) -> Drawn:
    """A mask a colour; the category is the colour, as #rrggbb, or the class that the label map names."""
    values = _colours(data, file, source)
    kinds = _colours(class_file(file, source), file, source) if source.classes else values
    if kinds.shape != values.shape:
        raise DataError(f"{file}: height, width {values.shape}, and {kinds.shape} in {source.classes}")
    drawn, code = Drawn(file, values.shape, [], []), coder(values)
    for value in _distinct(values, file):
        out = VOID if value == _VOID and value not in source.values else _left_out(value, source)
        name: str | None = f"#{value:06x}"
        if not out and source.colours:
            name = class_of(kinds[values == value], source)
            out = UNNAMED if name is None else DROPPED if name == BACKGROUND else ""
        _put(drawn, code, value, category=name or "", out=out)
    return drawn


MODES: dict[str, Callable[[bytes, str, Source], Drawn]] = {
    "binary": binary,
    "index": index,
    "instance": instance,
    "color": color,
}


def decode_raster(data: bytes, *, name: str, threshold: int, max_pixels: int) -> tuple[np.ndarray, str]:
    """The bytes of a binary mask file -> (`[H, W]` bool, a remark or '').

    A pixel is in the mask when its grey value is above threshold (0..254); a file with only 0 and 1 is read as such,
    with a remark. Antialiased edges and soft alpha are read without one: a grey there has darker and lighter
    neighbours. Where at least 1 % of what is not black is grey (17..238) with neighbours of the very same grey, or
    where a coloured palette has more than two colours in use, the file may be an index map, and the remark says so.
    name: the file, for the DataError: unreadable, colours, or a mask that is empty.
    """
    with open_picture(data, name=name, what="mask", max_pixels=max_pixels) as image:
        image.load()
        grey, many = _grey(image)
    high = int(grey.max())
    if high == 1 and threshold >= 1:
        return grey == 1, SPREAD
    mask = grey > threshold
    if not mask.any():
        raise DataError(
            f"{name}: the mask is empty: no pixel is above the threshold {threshold}, the highest value is {high}"
        )
    return mask, GREYS if many or _flat_greys(grey) else ""


def _flat_greys(grey: np.ndarray) -> bool:
    """Whether greys between black and white form flat regions."""
    core, middle = grey[1:-1, 1:-1], (grey > 16) & (grey < 239)
    two = not ((grey != grey.min()) & (grey != grey.max())).any()
    if two or min(grey.shape) < 3 or not middle.any():
        return False
    sides = (grey[:-2, 1:-1], grey[2:, 1:-1], grey[1:-1, :-2], grey[1:-1, 2:])
    flat = middle[1:-1, 1:-1] & np.logical_and.reduce([side == core for side in sides])
    return int(flat.sum()) >= 0.01 * int((grey > 0).sum())


def _left_out(value: int, source: Source) -> str:
    if value in source.drop:
        return DROPPED
    return UNASKED if source.values and value not in source.values else ""


def _put(drawn: Drawn, code: Callable[[int], str], value: int, *, category: str, out: str) -> None:
    """One value: its mask, or the reason why not."""
    if not out:
        drawn.masks.append((category, code(value)))
    elif value != 0 or out != DROPPED:
        drawn.remarks.append(out)


def _distinct(values: np.ndarray, file: str) -> list[int]:
    found = np.unique(values)
    if len(found) > MOST:
        raise DataError(
            f"{file}: {len(found):,} different values: a photo, or edges that were smoothed, not a map of values"
        )
    return [int(value) for value in found]


def _values(data: bytes, file: str, source: Source) -> np.ndarray:
    """`[H, W]` integers of a map: the palette's index, 8, 16 or 32 bits whole, or one channel of a colour file."""
    with open_picture(data, name=file, what="mask", max_pixels=source.max_pixels) as image:
        image.load()
        pixels = np.asarray(image)
        if source.channel is not None and pixels.ndim == 3:
            if source.channel >= pixels.shape[2]:
                raise ValueError(f"channel {source.channel} asked for, it has {pixels.shape[2]} (counted from 0)")
            return pixels[..., source.channel]
        if image.mode == "1":
            return pixels.astype(np.uint8)
        if image.mode in ("L", "P") or image.mode.startswith("I"):
            return pixels
        return _one_channel(image, pixels, remedy="set `channel` to the one that holds the values")


def _one_channel(image: Image.Image, pixels: np.ndarray, *, remedy: str) -> np.ndarray:
    """The grey of LA, and of RGB and RGBA whose colours are equal. ValueError for anything else."""
    if image.mode == "LA":
        return pixels[..., 0]
    if image.mode == "RGBA" and (pixels[..., 3] != 255).any():
        raise ValueError(f"it has both colours and transparency, either may be the mask; {remedy}")
    if image.mode not in ("RGB", "RGBA"):
        raise ValueError(f"pixels of mode {image.mode}; wanted one grey channel")
    if (pixels[..., :3] != pixels[..., :1]).any():
        raise ValueError(f"its red, green and blue differ: a photo posing as a mask; {remedy}")
    return pixels[..., 0]


def _grey(image: Image.Image) -> tuple[np.ndarray, bool]:
    """`[H, W]` 0..255 of a mask with one value a pixel; whether it is an index of more than two colours."""
    pixels = np.asarray(image)
    if image.mode == "1":
        return pixels.astype(np.uint8) * 255, False
    if image.mode == "P":
        return _palette_values(image)
    if image.mode.startswith("I"):
        return (pixels if pixels.max() <= 255 else pixels >> 8), False  # 16 bits: the upper 8
    if image.mode == "L":
        return pixels, False
    return _one_channel(image, pixels, remedy="save it as one grey channel"), False


def _palette_values(image: Image.Image) -> tuple[np.ndarray, bool]:
    """Grey of the palette where it is a grey one, else the index: a coloured palette only tells objects apart."""
    pixels = np.asarray(image)
    palette = np.asarray(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    numbers = np.unique(pixels)
    if numbers[-1] >= len(palette):
        return pixels, len(numbers) > 2
    used = palette[numbers]
    grey = (used == used[:, :1]).all() and len(np.unique(used[:, 0])) == len(used)
    return (palette[pixels, 0], False) if grey else (pixels, len(numbers) > 2)


def _colours(data: bytes, file: str, source: Source) -> np.ndarray:
    """`[H, W]` 0xRRGGBB; what is wholly transparent is black."""
    with open_picture(data, name=file, what="mask", max_pixels=source.max_pixels) as image:
        image.load()
        return _packed(image)


def _packed(image: Image.Image) -> np.ndarray:
    if image.mode not in ("1", "L", "P", "RGB", "RGBA"):
        raise ValueError(f"pixels of mode {image.mode}; wanted colours")
    pixels = np.asarray(image.convert("RGBA")).astype(np.int32)
    alpha = pixels[..., 3]
    if ((alpha > 0) & (alpha < 255)).any():
        raise ValueError("half-transparent pixels have no colour of their own; save it without transparency")
    packed: np.ndarray = (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]
    return np.where(alpha > 0, packed, 0)
