"""Small pictures of one mask for the report: the photo with the prompt, right and wrong pixels, a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]
Click = tuple[int, int, int]  # x, y, label: 1 on the object, 0 off it

RIGHT, MISSED, ADDED = (0, 114, 178), (240, 228, 66), (213, 94, 0)  # RGB; blue, yellow and red of Okabe and Ito
MENDED, SPOILT = (0, 158, 115), (204, 121, 167)  # their green and purple
LONGEST = 164  # px of a picture
MARGIN = 0.35  # around the mask, share of its longest side
LEAST = 40  # px of the photo that are shown at least


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a photo that is shown, and how it is enlarged."""

    y0: int
    y1: int
    x0: int
    x1: int
    longest: int = LONGEST  # px of the picture's longest side

    @classmethod
    def around(cls, box: Box, *, hw: tuple[int, int]) -> Window:
        """A square about the box (x0, y0, x1, y1, ends inside), moved into a photo of hw (height, width)."""
        x0, y0, x1, y1 = box
        side = round(max(LEAST, (max(x1 - x0, y1 - y0) + 1) * (1 + 2 * MARGIN)))
        rows, columns = ((start + end + 1 - side) // 2 for start, end in ((y0, y1), (x0, x1)))
        return cls(*_inside(rows, side, limit=hw[0]), *_inside(columns, side, limit=hw[1]))

    @property
    def zoom(self) -> float:
        """Shown pixels a pixel of the photo."""
        return self.longest / max(self.y1 - self.y0, self.x1 - self.x0)

    def photo(self, image: Image) -> Image:
        """The part of `[H, W, 3]`, enlarged or shrunk."""
        how = cv2.INTER_AREA if self.zoom < 1 else cv2.INTER_CUBIC
        return np.asarray(self._resize(image, how), dtype=np.uint8)

    def mask(self, mask: Mask) -> Mask:
        """The part of `[H, W]` at the size of `photo`."""
        return np.asarray(self._resize(mask.astype(np.uint8), cv2.INTER_NEAREST), dtype=np.bool_)

    def values(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The part of a map `[H, W]` at the size of `photo`."""
        return np.asarray(self._resize(values, cv2.INTER_LINEAR), dtype=np.float32)

    def place(self, x: float, y: float) -> tuple[int, int]:
        """A pixel of the photo in the picture."""
        return round((x + 0.5 - self.x0) * self.zoom), round((y + 0.5 - self.y0) * self.zoom)

    def _resize(self, plane: NDArray[Any], how: int) -> NDArray[Any]:
        part = plane[self.y0 : self.y1, self.x0 : self.x1]
        size = max(1, round(part.shape[1] * self.zoom)), max(1, round(part.shape[0] * self.zoom))
        return cv2.resize(part, size, interpolation=how)


def _inside(start: int, length: int, *, limit: int) -> tuple[int, int]:
    """start and start + length, moved into 0..limit, shortened only where there is no room."""
    start = max(0, min(start, limit - length))
    return start, min(limit, start + length)


def prompted(window: Window, image: Image, *, click: tuple[int, int] | None, box: Box) -> Image:
    """The photo with the first prompt: a ringed dot, or the box where there was no click."""
    picture = np.ascontiguousarray(window.photo(image))
    if click is None:
        corners = window.place(box[0] - 0.5, box[1] - 0.5), window.place(box[2] + 0.5, box[3] + 0.5)
        cv2.rectangle(picture, *corners, (255, 255, 255), 3, cv2.LINE_AA)
        cv2.rectangle(picture, *corners, (0, 0, 0), 1, cv2.LINE_AA)
        return picture
    centre = window.place(*click)
    cv2.circle(picture, centre, 6, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(picture, centre, 4, (0, 0, 0), -1, cv2.LINE_AA)
    return picture


def clicked(window: Window, picture: Image, clicks: Sequence[Click]) -> Image:
    """A picture of the window with small dots: white with a black heart on the object, the other way round off it."""
    drawn = np.ascontiguousarray(picture)
    for x, y, label in clicks:
        outer, inner = ((255, 255, 255), (0, 0, 0)) if label else ((0, 0, 0), (255, 255, 255))
        for radius, colour in ((4, outer), (2, inner)):
            cv2.circle(drawn, window.place(x, y), radius, colour, -1, cv2.LINE_AA)
    return drawn


def compared(window: Window, image: Image, *, prediction: Mask, truth: Mask) -> Image:
    """The photo in grey with right pixels blue, missed ones yellow, added ones red; the truth's outline is white."""
    answer, wanted = window.mask(prediction), window.mask(truth)
    regions = ((answer & wanted, RIGHT), (~answer & wanted, MISSED), (answer & ~wanted, ADDED))
    return _tinted(window.photo(image), regions, outline=wanted)


def changed(window: Window, image: Image, *, before: Mask, after: Mask, truth: Mask) -> Image:
    """The photo in grey with what only `after` has right in green, only `before` in purple; the truth's outline."""
    one, other, wanted = (window.mask(mask) for mask in (before, after, truth))
    regions = (((one != wanted) & (other == wanted), MENDED), ((one == wanted) & (other != wanted), SPOILT))
    return _tinted(window.photo(image), regions, outline=wanted)


def _tinted(photo: Image, regions: Sequence[tuple[Mask, tuple[int, int, int]]], *, outline: Mask) -> Image:
    grey = photo.mean(axis=2, keepdims=True, dtype=np.float32)
    picture = np.repeat(grey * 0.6 + 50, 3, axis=2)
    for region, colour in regions:
        picture[region] = 0.35 * picture[region] + 0.65 * np.array(colour, dtype=np.float32)
    drawn = np.asarray(picture.clip(0, 255), dtype=np.uint8)
    lines, _ = cv2.findContours(outline.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, lines, -1, (255, 255, 255), 1)
    return drawn


def heat(window: Window, image: Image, *, values: NDArray[np.float32]) -> Image:
    """The photo in faint grey under a heat map of `[H, W]` values 0..1: black 0, bright 1."""
    codes = np.asarray(window.values(values).clip(0, 1) * 255, dtype=np.uint8)
    warm = cv2.applyColorMap(codes, cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = window.photo(image).mean(axis=2, keepdims=True)
    return np.asarray((0.8 * warm + 0.2 * grey).clip(0, 255), dtype=np.uint8)


def to_jpeg(picture: Image, *, quality: int = 90) -> bytes:
    """`[h, w, 3]` RGB as a JPEG with full colour resolution: a tenth of a PNG for photos, thin outlines stay sharp."""
    full = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    done, data = cv2.imencode(".jpg", picture[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, quality, *full))
    if not done:
        raise ValueError(f"to_jpeg: cannot encode a picture of shape {picture.shape}")
    return bytes(data)


def to_png(picture: Image) -> bytes:
    """`[h, w, 3]` RGB or `[h, w]` grey as a PNG."""
    done, data = cv2.imencode(".png", picture[..., ::-1] if picture.ndim == 3 else picture)
    if not done:
        raise ValueError(f"to_png: cannot encode a picture of shape {picture.shape}")
    return bytes(data)


def strip(pictures: Sequence[Image]) -> Image:
    """Pictures side by side on white, as high as the highest."""
    height = max(picture.shape[0] for picture in pictures)
    room = [((0, height - picture.shape[0]), (0, 4), (0, 0)) for picture in pictures]
    padded = [np.pad(picture, gap, constant_values=255) for picture, gap in zip(pictures, room, strict=True)]
    return np.concatenate(padded, axis=1)
