"""Early stopping: IoU after one click on held-out human masks, measured at every checkpoint; the best weights are kept.

A figure is a function of the weights alone and nothing is drawn, so that a stopped run goes on to the same end.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from sum.bench import point_ious
from sum.data.records import Manifest
from sum.data.splits import divide
from sum.engine import Loop
from sum.errors import DataError
from sum.models.segmenter import Segmenter
from sum.storage import write_json
from sum.tensor_files import check, read_tensors, write_tensors

log = logging.getLogger(__name__)
KEPT = 2  # best weights: a damaged checkpoint takes a run back to before the last ones


class Enough(Exception):
    """The figure has not risen for `patience` checkpoints."""


class Watch:
    """Figures of the checkpoints of one training, and when it is to end."""

    def __init__(self, held: Manifest, *, patience: int, folder: Path) -> None:
        """held: images with masks that are not trained on; folder: where figures and the best weights are kept."""
        self.masks = held.masks_of()
        self.images = [image for image in held.images if self.masks[image.image_id]]
        self.patience, self.folder = patience, folder
        self._note = folder / "validation.json"
        known = json.loads(self._note.read_text(encoding="utf-8")) if self._note.is_file() else {}
        self.figures: dict[int, float] = {int(step): float(figure) for step, figure in known.items()}

    @property
    def best(self) -> int:
        """The step with the highest figure, the first of equals."""
        return min(self.figures, key=lambda step: (-self.figures[step], step))

    def look(self, loop: Loop) -> None:
        """Measure the loop's weights if nobody has. Raises Enough when the best is `patience` checkpoints old."""
        step = loop.step
        self.figures = {known: figure for known, figure in loop.told_by_first(self.figures).items() if known <= step}
        with published(loop):
            if step not in self.figures:
                self.figures[step] = self._measure(loop)
            if loop.rank == 0:
                if self.best == step:
                    self._keep(loop)
                write_json(self._note, {str(known): figure for known, figure in sorted(self.figures.items())})
        if loop.rank == 0:
            words = "step %d: IoU %.4f after one click on held-out images; best %.4f at step %d"
            log.info(words, step, self.figures[step], self.figures[self.best], self.best)
        if sum(known > self.best for known in self.figures) >= self.patience:
            raise Enough

    def take_best(self, model: Segmenter) -> None:
        """Give the model the weights of the best figure. Raises CheckpointError when their file is damaged."""
        path = self._weights(self.best)
        check(path)
        model.load_state_dict(dict(read_tensors(path)))

    def _measure(self, loop: Loop) -> float:
        """Mean IoU 0..1 over all held-out masks; processes share the images."""
        assert isinstance(loop.model, Segmenter)
        found: list[float] = []
        for image in self.images[loop.rank :: loop.ranks]:
            found += point_ious(loop.model, image, self.masks[image.image_id])
        sums = torch.tensor([sum(found), len(found)], dtype=torch.float64)
        total: Tensor = loop.accelerator.reduce(sums.to(loop.accelerator.device), reduction="sum")
        return float(total[0] / total[1])

    def _keep(self, loop: Loop) -> None:
        """Write the best weights and remove older ones; later ones are of a run that was taken back to here."""
        path = self._weights(loop.step)
        write_tensors(path, loop.model.state_dict(), facts={"step": str(loop.step)})
        known = [old for old in sorted(self.folder.glob("best-*.safetensors")) if old.name <= path.name]
        for old in known[:-KEPT]:
            old.unlink()

    def _weights(self, step: int) -> Path:
        return self.folder / f"best-{step:07d}.safetensors"


def hold_out(human: Manifest, *, share: float) -> tuple[Manifest, Manifest]:
    """Human images to learn from, and the `share` (0..1) that is measured. Raises DataError when it has no mask."""
    learn, held = divide(human, share=share)
    if share and not held.masks:
        raise DataError(
            f"finetune.early_stop.held_out: {share} of {len(human.images)} human images holds out no mask. Raise it or "
            "set finetune.early_stop.patience to 0."
        )
    return learn, held


@contextmanager
@torch.no_grad()
def published(loop: Loop) -> Iterator[None]:
    """Inside, the model has the weights that would be published now: the averaged ones, if there is an average."""
    own = {name: value.clone() for name, value in loop.model.named_parameters() if name in loop.average}
    loop.finish()
    try:
        yield
    finally:
        for name, value in loop.model.named_parameters():
            if name in own:
                value.copy_(own[name])
