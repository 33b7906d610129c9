"""What a student sees of two unlabelled images: both changed in intensity, a rectangle of one in the other (AugSeg).

The teacher sees both as they are. What is drawn comes from the generator that draws an image's masks: a function of
seed, step and place in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from sum.core.cutmix import box_part, cut_box
from sum.data.batches import ImageSource, Sample, Views, image_part
from sum.data.intensity import changed
from sum.data.samples import replaced

SHAPE = 4.0  # of the Beta(4, 4) from which AugSeg draws the share of an image that stays
LEAST = 100.0  # px of a 1024 frame: a cut mask of which less is left is dropped, as the official loader's small ones


@dataclass(frozen=True, kw_only=True)
class StudentViews:
    """An image source whose samples are students' views, each mixed of two images of `source`."""

    source: ImageSource

    def __len__(self) -> int:
        return len(self.source)

    def sample(self, index: int, *, masks: int, rng: np.random.Generator) -> Sample:
        """The source's sample `index` with a rectangle of another of its samples; at most `masks` masks of both."""
        first = self.source.sample(index, masks=masks, rng=rng)
        step = 1 + int(rng.integers(max(1, len(self) - 1)))
        second = self.source.sample((index + step) % len(self), masks=masks, rng=rng)
        hw: tuple[int, int] = (
            min(int(first.hw[0]), int(second.hw[0])),
            min(int(first.hw[1]), int(second.hw[1])),
        )  # both have their upper left corner in that of the frame
        share = 1 - rng.beta(SHAPE, SHAPE)
        box = cut_box(hw, share=share, centre=(rng.random(), rng.random()))
        return mixed(first, second, box=box, masks=masks, rng=rng)


def mixed(
    first: Sample, second: Sample, *, box: tuple[int, int, int, int], masks: int, rng: np.random.Generator
) -> Sample:
    """The view of `first` in which the pixels of `box` (px of the frame) are those of `second`; both must have them.

    A mask of `first` keeps what is outside the box, one of `second` what is inside; of those that are left `masks` are
    drawn. Without any the view is `first` alone. certainty is 1 on the whole image: what is hidden is background.
    """
    side, loss_side = first.image.shape[-1], first.mask.shape[-1]
    x0, y0, x1, y1 = box
    image = changed(first.image, (int(first.hw[0]), int(first.hw[1])), rng=rng)
    other = changed(second.image, (int(second.hw[0]), int(second.hw[1])), rng=rng)
    inside = box_part(box, side=side, loss_side=loss_side)
    part = image_part((int(first.hw[0]), int(first.hw[1])), side=side, loss_side=loss_side)
    owner = torch.tensor([0] * len(first.mask) + [1] * len(second.mask))
    whole = torch.cat([first.mask, second.mask])
    visible = torch.where(owner[:, None, None] > 0, inside, ~inside)
    shown = whole & visible & (part > 0)
    before, left = whole.flatten(1).sum(1), shown.flatten(1).sum(1)
    kept = left >= before.clamp(max=max(1, round(LEAST * (loss_side / 1024) ** 2)), min=1)
    if kept.any():
        image[:, y0:y1, x0:x1] = other[:, y0:y1, x0:x1]
        rows = kept.nonzero().flatten()[torch.from_numpy(rng.permutation(int(kept.sum()))[:masks])]
    else:
        rows = torch.arange(len(first.mask))
        shown, visible = whole, torch.ones_like(visible)
    target, xy = replaced(shown[rows], torch.cat([first.point, second.point])[rows], shown[rows], side=side)
    names = [*first.mask_ids, *second.mask_ids]
    return replace(
        first,
        image=image,
        mask=target,
        certainty=part.expand(len(rows), -1, -1),
        point=xy,
        mask_ids=tuple(names[row] for row in rows.tolist()) if len(names) == len(owner) else (),
        views=Views(
            rows=(0,),
            image=torch.stack([first.image, second.image]),
            hw=torch.stack([first.hw, second.hw]),
            index=owner[rows],
            visible=visible[rows][:, None],
        ),
    )
