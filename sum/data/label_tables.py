"""Pseudo-labels and their uncertainty as tables to be checked, read image by image: neither masks nor maps are kept.

Of masks there may be tens of millions: their table comes in parts. That of the images is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sum.data.labels import LabelStore, PseudoMask
from sum.data.runs import AT_ONCE, read_runs
from sum.errors import SumError

PAPER_SIDE = 1024  # px, the longest side of the frame in which params.yaml gives areas of pseudo-labels
WHOLE = ("index", "area", "x0", "y0", "x1", "y1")
REAL = ("point_x", "point_y", "predicted_iou", "stability")
ROWS = (
    20_000  # of the table of masks at once: about 11 MB; fewer cost time, every part has Great Expectations begin anew
)


class LabelRows:
    """A row a pseudo-mask, gathered image by image; their run lengths are looked at a few at a time and let go."""

    def __init__(self) -> None:
        self._ids, self._done = list[str](), 0
        self._rows, self._codes, self._images = list[tuple[float | None, ...]](), list[str](), list[tuple[int, ...]]()
        self._parts = list[dict[str, NDArray[np.generic]]]()

    def __len__(self) -> int:
        return self._done + len(self._rows)

    def add(self, image_id: str, masks: Sequence[PseudoMask], has_map: Sequence[bool], *, hw: tuple[int, int]) -> None:
        """The masks of an image of hw (height, width), and whether each has a map of its uncertainty."""
        number = len(self._ids)
        self._ids.append(image_id)
        for mask, mapped in zip(masks, has_map, strict=True):
            scores = mask.predicted_iou, mask.stability
            self._rows.append((mask.index, mask.area, *mask.box, *mask.point, *scores))
            self._codes.append(mask.rle)
            self._images.append((number, mapped, *hw))
        if len(self._rows) >= AT_ONCE:
            self._flush()

    def table(self, *, min_refine_area: float) -> pd.DataFrame:
        """All rows, forgotten here by that. `lacking` and `box_of_runs` name what is wrong, or are null; see `_part`.

        min_refine_area: px at a 1024 frame, from which on a mask is to have a map (`wants_map`).
        """
        self._flush(empty=not self._parts)
        columns = {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
        ids = pd.Index(self._ids, dtype="str")
        self._parts, self._ids, self._done = [], [], 0
        table = pd.DataFrame(columns)
        for name in WHOLE:
            if table[name].notna().all() and np.isfinite(table[name]).all():
                table[name] = table[name].astype("int64")
        number = table.pop("number")
        table["image_id"] = pd.Series(pd.Categorical.from_codes(number.to_numpy(), categories=ids), table.index)
        table["image_pixels"] = table["height"] * table["width"]
        table["area_share"] = table["area"] / table["image_pixels"]
        longest = table[["height", "width"]].max(axis=1)
        scales = {side: (PAPER_SIDE / side) ** 2 for side in longest.unique().tolist()}  # to the last bit as the stage
        table["paper_area"] = table["area"] * longest.map(scales)
        table["wants_map"] = (table["paper_area"] >= min_refine_area).astype("int64")
        table["iou_before"] = table["predicted_iou"].shift().where(number == number.shift())
        return table

    def _flush(self, *, empty: bool = False) -> None:
        if self._rows or empty:
            self._parts.append(_part(self._rows, self._codes, self._images))
            self._done += len(self._rows)
        for held in (self._rows, self._codes, self._images):
            held.clear()


def _part(
    rows: Sequence[tuple[float | None, ...]],
    codes: Sequence[str],
    images: Sequence[tuple[int, ...]],
) -> dict[str, NDArray[np.generic]]:
    """Columns of some rows.

    pixels, run_area, alternate: of the run lengths, as in tables.mask_table; box_of_runs: null where it is the box, or
    where they are no mask of that size; mapped: 1 with a map, else 0; lacking: names of values that are not finite.
    """
    values = np.array(rows, dtype=np.float64).reshape(-1, len(WHOLE) + len(REAL))
    number, mapped, height, width = np.array(images, dtype=np.int64).reshape(-1, 4).T
    runs = read_runs(codes)
    boxes, stated = runs.boxes(height), values[:, 2:6]
    sound = runs.alternate & (runs.pixels == height * width)
    moved = np.flatnonzero(sound & (boxes != stated).any(axis=1) & np.isfinite(stated).all(axis=1))
    names = (*WHOLE, *REAL)
    blank = ~np.isfinite(values)
    lacking = {
        row: ", ".join(name for name, is_blank in zip(names, blank[row], strict=True) if is_blank)
        for row in np.flatnonzero(blank.any(axis=1)).tolist()
    }
    return {
        "number": number,
        **dict(zip(names, values.T, strict=True)),
        "mapped": mapped,
        "height": height,
        "width": width,
        "pixels": runs.pixels,
        "run_area": runs.area,
        "alternate": runs.alternate,
        "box_of_runs": texts(len(rows), {row: " ".join(map(str, boxes[row])) for row in moved.tolist()}).to_numpy(),
        "lacking": texts(len(rows), lacking).to_numpy(),
    }


def texts(rows: int, found: Mapping[int, str]) -> pd.Series[str]:
    """A column of so many rows: these texts, null elsewhere."""
    column = np.full(rows, None, dtype=object)
    for row, text in found.items():
        column[row] = text
    return pd.Series(column, dtype="object")


class LabelTables:
    """What a store holds as two tables: a row a pseudo-mask, in parts of bounded size, and a row an image."""

    def __init__(
        self, store: LabelStore, images: pd.DataFrame, *, unreadable: Mapping[str, str], min_refine_area: float
    ) -> None:
        """images: those of the manifest; unreadable: image -> why it has no labels; min_refine_area: see LabelRows."""
        self._store, self._unreadable, self._min_refine_area = store, unreadable, min_refine_area
        self._known = images.drop_duplicates("image_id").set_index("image_id")
        self._problems, self._counts = dict[str, str](), dict[str, int]()

    def masks(self, rows: int = ROWS) -> Iterator[pd.DataFrame]:
        """The masks in parts of whole images, at least one part, each of `rows` rows and those of one image at most.

        An image whose labels or maps cannot be read, or are not whole, is left out: `images` tells why.
        """
        known, gathered, empty = self._known, LabelRows(), True
        sizes = dict(zip(known.index, zip(known["height"], known["width"], strict=True), strict=True))
        for image_id in self._store.image_ids:
            try:
                masks = self._store.masks(image_id)
                has_map = self._store.has_map(image_id).tolist()
                self._counts[image_id] = len(masks)
                if image_id in sizes:
                    gathered.add(image_id, masks, has_map, hw=sizes[image_id])
            except (SumError, ValueError, TypeError) as error:
                self._problems[image_id] = str(error)
            if len(gathered) >= rows:
                yield gathered.table(min_refine_area=self._min_refine_area)
                empty = False
        if empty or len(gathered):
            yield gathered.table(min_refine_area=self._min_refine_area)

    def images(self) -> pd.DataFrame:
        """A row an image of split unlabelled or with an answer of stage pseudo_label, once all masks have been read.

        `answer`: labelled, unreadable, both or none; `in_test`: the test image of the same content; `problem`: why its
        labels or maps cannot be read.
        """
        ids = self._store.image_ids
        return _images(self._known, ids, counts=self._counts, problems=self._problems, unreadable=self._unreadable)


def _images(
    known: pd.DataFrame,
    ids: Sequence[str],
    *,
    counts: Mapping[str, int],
    problems: Mapping[str, str],
    unreadable: Mapping[str, str],
) -> pd.DataFrame:
    wanted = known.index[known["split"].astype("str") == "unlabelled"]
    table = pd.DataFrame({"image_id": sorted({*wanted, *ids, *unreadable})}, dtype="object")
    for name in ("dataset", "path", "split", "sha256"):
        table[name] = table["image_id"].map(known[name].astype("object"))
    labelled, failed = table["image_id"].isin(set(ids)), table["image_id"].isin(set(unreadable))
    table["answer"] = np.select(
        [labelled & failed, labelled, failed], ["both", "labelled", "unreadable"], default="none"
    ).astype(object)
    table["masks"] = table["image_id"].map(pd.Series(counts, dtype="float64"))
    table["problem"] = table["image_id"].map(pd.Series(problems, dtype="object"))
    table["reason"] = table["image_id"].map(pd.Series(unreadable, dtype="object"))
    tests = known[known["split"].astype("str") == "test"]
    rows = zip(tests["sha256"].astype("str"), tests.index, tests["path"], strict=True)
    of_content = {sha256: f"{image_id} ({path})" for sha256, image_id, path in rows}
    table["in_test"] = table.pop("sha256").map(of_content)
    return table.where(table.notna(), None).astype({"masks": "float64"})


def yield_table(images: pd.DataFrame) -> pd.DataFrame:
    """A row a data set with labelled images: how many, `without_masks` of them, `share_without_masks`."""
    labelled = images[images["masks"].notna() & images["dataset"].notna()]
    groups = labelled["masks"].eq(0).groupby(labelled["dataset"].astype("object"), sort=True)
    table = groups.agg(images="size", without_masks="sum").reset_index()
    table["share_without_masks"] = table["without_masks"] / table["images"]
    return table
