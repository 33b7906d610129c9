"""Why a step was not finite: its images and masks by name, looked up only after it happened.

A mask's own loss tells which one it was; where the data itself holds a NaN or an infinite number, that is said too.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sum.data.batches import TrainBatch

NAMED = 8  # names in one message; of more the number is told
OF_MASKS = ("mask", "certainty", "point")


@dataclass(frozen=True, slots=True)
class Found:
    """What one process knows of a step that was left out."""

    guilty: tuple[tuple[str, str], ...] = ()  # (words, image id) of masks, or whole images, whose loss is not finite
    images: tuple[str, ...] = ()  # all of this process
    known: bool = False  # whether it has the losses of single masks
    every: bool = False  # none of them is finite, and the data is sound
    unfit: tuple[str, ...] = ()  # images whose own data, or that of a mask of theirs, is not finite


def look(batch: TrainBatch, losses: Tensor | None) -> Found:
    """Who is to blame. losses: `[N]`, that of each mask, or None where only the sum is known. Waits for the device."""
    images = tuple(_image(batch, row) for row in range(len(batch.image)))
    spoiled = _unfit(batch.image)
    guilty = [(f"image {images[row]} (its pixels are not finite)", images[row]) for row in spoiled]
    rows = [] if losses is None else _unfit(losses[:, None])
    where, unfit = batch.image_index.tolist(), [images[row] for row in spoiled]
    for row in rows:
        why = " and ".join(name for name in OF_MASKS if _unfit(getattr(batch, name)[row : row + 1]))
        unfit += [images[where[row]]] if why else []
        if where[row] not in spoiled:
            words = f"mask {_mask(batch, row, images[where[row]])}" + (f" (its {why} is not finite)" if why else "")
            guilty.append((words, images[where[row]]))
    every = len(rows) == len(where) > 0 and not unfit
    return Found(tuple(guilty), images, known=losses is not None, every=every, unfit=tuple(dict.fromkeys(unfit)))


class Culprits:
    """Counts who was to blame in steps in a row that were left out."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """A step went well."""
        self._blamed: Counter[tuple[str, str]] = Counter()
        self._images: Counter[str] = Counter()  # those of the blamed
        self._unfit: Counter[str] = Counter()
        self._seen: Counter[str] = Counter()
        self._steps = self._all_bad = 0

    def tell(self, found: Sequence[Found]) -> str:
        """Who made this step not finite, in words, and count it; found: by each process."""
        self._steps += 1
        guilty = [one for part in found for one in part.guilty]
        images = [image for part in found for image in part.images]
        self._blamed.update(dict.fromkeys(guilty, 1))  # once a step, in their order
        self._images.update(dict.fromkeys((image for _, image in guilty), 1))
        self._unfit.update(dict.fromkeys((image for part in found for image in part.unfit), 1))
        self._seen.update(dict.fromkeys(images, 1))
        if not guilty:
            known = "the losses of all masks are finite, the gradient is not; " if all(p.known for p in found) else ""
            return f"{known}images of the step: {_few(images)}"
        all_bad = all(part.every for part in found)
        self._all_bad += all_bad
        every = "every mask, so no single one stands out: " if all_bad and len(guilty) > 1 else ""
        return f"not finite: {every}{_few(words for words, _ in guilty)}"

    @property
    def weights(self) -> bool:
        """Whether no mask of these steps was finite though their data is: the weights are to blame."""
        return 0 < self._steps == self._all_bad and len(self._blamed) > 1

    def summary(self) -> str:
        """Who was to blame in all of these steps, most frequent first, and how to do without one that stands out."""
        if not self._blamed:
            return f"No mask's own loss was at fault; images of these steps: {_few(_ranked(self._seen))}."
        names = [f"{words} in {count} of {self._steps}" for (words, _), count in self._blamed.most_common()]
        worst = self._outstanding()
        return f"Not finite: {_few(names)}." + (" No image stands out." if worst is None else _without(worst))

    def ended(
        self, steps: tuple[int, int], *, limit: int, checkpoint: Path | None, rate: float | None, clip_norm: float
    ) -> str:
        """The message with which a training ends.

        steps: the first and the last that were left out; limit: optim.max_skipped; checkpoint: the newest from before
        them; rate: learning rate of the last update, None when there was none; clip_norm: optim.clip_norm.
        """
        before = (
            "There is no checkpoint yet"
            if checkpoint is None
            else f"{checkpoint} is the newest checkpoint from before, the same command goes on from it"
        )
        reason = _of_weights(steps[0], rate) if self.weights else self.summary()
        advice = "Lower optim.lr" + ("" if clip_norm else ", or set optim.clip_norm")
        if self.weights and rate is None:
            advice = "Look at model.checkpoint and optim.precision"
        return (
            f"steps {steps[0]} to {steps[1]}: no loss or gradient was finite, optim.max_skipped is {limit}. "
            f"{reason} {before}. {advice}: that begins a new training."
        )

    def _outstanding(self) -> str | None:
        """The image whose data is not finite; or else the only one to blame in more than half of the steps.

        Nobody where more than half of the images seen were to blame: bad weights spoil nearly all.
        """
        if self._unfit:
            return _ranked(self._unfit)[0]
        often = [image for image, count in self._images.items() if 2 * count > self._steps]
        return often[0] if len(often) == 1 and 2 * len(self._images) <= len(self._seen) else None


def _of_weights(step: int, rate: float | None) -> str:
    """What happened where every mask is not finite."""
    when = "before any update" if rate is None else f"after the update with learning rate {rate:g}"
    return (
        f"The training diverged at step {step}, {when}: every mask of these steps is not finite, no image stands out."
    )


def _without(image_id: str) -> str:
    """How to train without an image of a data set; nothing for one that was drawn."""
    name, _, rest = image_id.partition("/")
    if not rest:
        return ""
    return (
        f" To do without that image: datasets.{name}.exclude: ['{glob.escape(rest)}'] in params.yaml, then `dvc repro`."
    )


def _unfit(values: Tensor) -> list[int]:
    """Rows `[K, ...]` that hold a NaN or an infinite number."""
    bad: list[int] = (~torch.isfinite(values)).flatten(1).any(1).nonzero().flatten().tolist()
    return bad


def _image(batch: TrainBatch, row: int) -> str:
    name = batch.image_ids[row] if batch.image_ids else ""
    return name or f"number {row} of the step"


def _mask(batch: TrainBatch, row: int, image: str) -> str:
    name = batch.mask_ids[row] if batch.mask_ids else ""
    return name or f"number {row} of the step, of image {image}"


def _ranked(names: Counter[str]) -> list[str]:
    return [name for name, _ in names.most_common()]


def _few(names: Iterable[str]) -> str:
    """The first names, and how many there are beside."""
    every = list(names)
    return ", ".join(every[:NAMED]) + (f" and {len(every) - NAMED} more" if len(every) > NAMED else "")
