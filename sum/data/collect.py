"""The masks of one image, gathered by the rules that hold for every kind of annotation."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco
from scipy import ndimage

from sum.data.records import ImageRecord, MaskRecord, decode_mask
from sum.data.rle import EMPTY, coder
from sum.data.sources import Item, Note, Problem, Sample, Source, make_mask

BARE = "image without a mask left out"
SMALL = "mask smaller than min_area left out"
LARGE = "mask larger than max_area_share left out"
OTHER = "mask of another category left out"


class Collector:
    """Takes the masks of one image one after the other; then says what the image gives."""

    def __init__(self, source: Source, image: ImageRecord) -> None:
        """image: as `read_photo` returned it; masks come at its size."""
        self.image = image
        self._source, self._masks, self._others = source, list[MaskRecord](), list[Item]()

    def note(self, reason: str, where: str) -> None:
        """Something left out or read in a special way by rule."""
        self._others.append(Note(reason, where))

    def problem(self, file: str, reason: str, remedy: str) -> None:
        """Something that cannot be used."""
        self._others.append(Problem(file, reason, remedy))

    def add(self, rle: str, *, category: str, file: str, where: str) -> None:
        """One mask: COCO compressed counts at the image's size, '' for none; where: its name in what is told."""
        if self._source.categories and category not in self._source.categories:
            return self.note(OTHER, where)
        for piece in self._pieces(rle):
            self._add(piece, category=category, file=file, where=where)
        return None

    def take(self, drawn: tuple[str, str], *, category: str, file: str, where: str) -> None:
        """A shape as `to_rle` gives it, counts ('' for none) and a remark or '': the remark is told, the mask added."""
        rle, remark = drawn
        if remark:
            self.note(remark, where)
        if rle:
            self.add(rle, category=category, file=file, where=where)

    def items(self) -> list[Item]:
        """The sample, if there is any mask, and all that is to be told."""
        if self._masks:
            return [Sample(self.image, tuple(self._masks)), *self._others]
        return [*self._others, Note(BARE, self.image.path)]

    def _pieces(self, rle: str) -> list[str]:
        if not self._source.split_components or not rle:
            return [rle]
        mask = decode_mask(rle, height=self.image.height, width=self.image.width)
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        return list(map(coder(labels), range(1, count + 1))) or [""]

    def _add(self, rle: str, *, category: str, file: str, where: str) -> None:
        height, width = self.image.height, self.image.width
        area = int(coco.area({"size": [height, width], "counts": rle.encode("ascii")})) if rle else 0
        if not area:
            return self.note(EMPTY, where)
        if area < self._source.min_area:
            return self.note(SMALL, where)
        if area > self._source.max_area_share * height * width:
            return self.note(LARGE, where)
        number = len(self._masks)
        return self._masks.append(make_mask(self.image, rle, number=number, category=category, file=file))
