"""What MLflow serves: rows with an image and prompts in, masks as COCO RLE and scores out.

`mlflow models serve -m models:/NAME@ALIAS --env-manager local` imports this module, as a logged model's MLmodel says.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from sum.data.images import decode_image, open_picture
from sum.data.records import encode_mask
from sum.errors import DataError
from sum.limits import PILLOW_LIMIT
from sum.mlflow_model import INPUTS, bad_request, server_fault
from sum.models.segmenter import TASKS
from sum.predict import Predictor

if TYPE_CHECKING:
    import pandas as pd

MAX_PIXELS = PILLOW_LIMIT  # of an image in a request: Pillow's own guard
NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class Request:
    """A checked row: `[H, W, 3]` uint8 RGB and the keywords of Predictor.predict."""

    image: np.ndarray
    prompt: Mapping[str, Any]


def read_request(row: Mapping[str, Any], *, max_pixels: int = MAX_PIXELS) -> Request:
    """A row of a request: image (base64 of an image file's bytes) and points `[[x, y], ...]` with labels (1 on the
    object, 0 off it), a box `[x0, y0, x1, y1]`, or both, in pixels of the image upright; task and multimask if wanted.

    None and NaN are as if left out. Raises DataError with the reason why it cannot be answered.
    """
    strange = [name for name in row if name not in INPUTS and not _absent(row[name])]
    if strange:
        if not all(isinstance(name, str) for name in strange):  # what pandas calls the columns of a list
            raise DataError("no object: each of dataframe_records wants the form {'image': ..., 'points': ...}")
        near = difflib.get_close_matches(strange[0], INPUTS, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise DataError(f"unknown column {_short(strange[0])}.{hint} Known: {', '.join(INPUTS)}")
    given = {name: _plain(row[name]) for name in INPUTS if not _absent(row.get(name))}
    image = _image(given.get("image"), max_pixels=max_pixels)
    size = (image.shape[1], image.shape[0])
    task, multimask = given.get("task", "unspecified"), given.get("multimask", True)
    if not isinstance(task, str) or task not in TASKS:
        raise DataError(f"task: unknown {_short(task)}. Known: {', '.join(TASKS)}")
    if not isinstance(multimask, bool):
        raise DataError(f"multimask: wants true or false, got {_short(multimask)}")
    prompt: dict[str, Any] = {"task": task, "multimask_output": multimask}
    if "points" in given:
        prompt["point_coords"] = _points(given["points"], size)
        prompt["point_labels"] = _labels(given.get("labels"), count=len(prompt["point_coords"]))
    elif "labels" in given:
        raise DataError("labels: there are no points that they belong to")
    if "box" in given:
        prompt["box"] = _box(given["box"], size)
    if "points" not in given and "box" not in given:
        raise DataError("a prompt is missing: give points and labels, or a box")
    return Request(image, prompt)


class Served:
    """A model in MLflow's interface: `predict` of a table of rows."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self._alone = threading.Lock()  # MLflow answers requests in threads, a predictor holds one image

    def predict(self, data: pd.DataFrame) -> list[dict[str, Any]]:
        """A row of `data` each: masks (COCO RLE: size [H, W], counts), scores (predicted IoU), task, fingerprint.

        All rows are checked before one is answered. A bad row is status 400 with the number of the row, from 1, and
        the reason; what fails here in spite of it is 500.
        """
        rows: list[dict[Any, Any]] = data.to_dict("records")
        if not rows:
            raise bad_request("no rows: send dataframe_records with at least one")
        requests = []
        for number, row in enumerate(rows, 1):
            try:
                requests.append(read_request(row))
            except DataError as error:
                raise bad_request(f"row {number}: {error}") from error
        with self._alone:
            try:
                return [self._answer(request) for request in requests]
            except (RuntimeError, MemoryError) as error:
                raise server_fault(f"the model failed: {type(error).__name__} {str(error)[:200]}") from error

    def _answer(self, request: Request) -> dict[str, Any]:
        self.predictor.set_image(request.image)
        masks, scores, _ = self.predictor.predict(**request.prompt)
        size = list(request.image.shape[:2])
        return {
            "masks": [{"size": size, "counts": encode_mask(mask)} for mask in masks],
            "scores": [float(score) for score in scores],
            "task": request.prompt["task"],
            "fingerprint": self.predictor.fingerprint,
        }


def _load_pyfunc(path: str) -> Served:
    """What MLflow calls with the path of the weights."""
    return Served(Predictor(Path(path)))


def _absent(value: object) -> bool:
    """Whether a cell is empty: pandas fills gaps with NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _image(text: object, *, max_pixels: int) -> np.ndarray:
    if not isinstance(text, str) or not text:
        what = "missing" if text is None or text == "" else f"a {type(text).__name__}"
        raise DataError(f"image: {what}; wants the base64 text of a JPEG's or PNG's bytes")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"image: not base64 ({error})") from error
    with open_picture(data, name="image", what="image", max_pixels=NO_LIMIT) as opened:  # its header alone
        width, height = opened.size
    if height * width > max_pixels:
        raise DataError(
            f"image: {width} x {height} pixels, more than the {max_pixels:,} that are taken; send it smaller"
        )
    return decode_image(data, name="image")


def _numbers(value: object, count: int) -> TypeGuard[list[float]]:
    """Whether a value is a list of so many finite numbers."""
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(entry, int | float) and not isinstance(entry, bool) and abs(entry) < 1e9 for entry in value)
    )


def _points(value: object, size: tuple[int, int]) -> np.ndarray:
    if not isinstance(value, list) or not value or not all(_numbers(point, 2) for point in value):
        raise DataError(f"points: wants [[x, y], ...] in pixels, got {_short(value)}")
    for x, y in value:
        if not (0 <= x < size[0] and 0 <= y < size[1]):
            raise DataError(f"points: ({x}, {y}) is outside the image of {size[0]} x {size[1]} pixels")
    return np.array(value, dtype=np.float64)


def _labels(value: object, *, count: int) -> np.ndarray:
    if value is None:
        raise DataError(f"labels: missing; wants one a point, {count}: 1 on the object, 0 off it")
    if not _numbers(value, count) or not all(label in (0, 1) for label in value):
        raise DataError(f"labels: wants {count} of 1 (on the object) or 0 (off it), one a point, got {_short(value)}")
    return np.array(value, dtype=np.int64)


def _box(value: object, size: tuple[int, int]) -> np.ndarray:
    if not _numbers(value, 4):
        raise DataError(f"box: wants [x0, y0, x1, y1] in pixels, got {_short(value)}")
    x0, y0, x1, y1 = value
    if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):
        wanted = f"wants x0 < x1 and y0 < y1 inside the image of {size[0]} x {size[1]} pixels"
        raise DataError(f"box: {_short(value)}; {wanted}")
    return np.array(value, dtype=np.float64)
