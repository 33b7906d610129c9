"""The teacher of AugSeg: the average of the student's weights, whose answer to a photo as it is the student learns.

Zhao et al., CVPR 2023; as a baseline for promptable masks in Liu et al., NeurIPS 2024.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from sum.core.losses import LossWeights, best_of, mask_losses
from sum.data.batches import TrainBatch
from sum.models.mask_chunk import MaskChunk, needs_room
from sum.models.segmenter import Prompts, Segmenter
from sum.rounds import Autocast, enlarged, valid_pixels


class Teacher:
    """A copy of a model that has the averaged weights themselves: it changes when they do, and holds no others.

    Frozen weights are the model's own. Its model is `model`.
    """

    def __init__(
        self,
        model: Segmenter,
        average: Mapping[str, Tensor],
        *,
        weights: LossWeights,
        autocast: Autocast = nullcontext,
        chunk: MaskChunk | None = None,
    ) -> None:
        """average: parameter's name -> value; weights: of the loss by which an output is chosen; chunk: shared."""
        shared = {
            id(value): nn.Parameter(average.get(name, value.detach()), requires_grad=False)
            for name, value in model.named_parameters()
        }
        self.model: Segmenter = copy.deepcopy(model, dict(shared)).eval()
        self.weights, self.autocast, self.chunk = weights, autocast, chunk or MaskChunk()

    @torch.no_grad()
    def relabel(self, batch: TrainBatch, prompts: Prompts) -> TrainBatch:
        """A batch of students' views with the teacher's masks in the place of the pseudo-labels.

        prompts: of the student, which are the teacher's too; photo and view have one frame. Of the teacher's three
        masks the one that fits the pseudo-label best where the student sees its photo, cut at logit 0 and to what is
        seen. Where nothing is left of it the pseudo-label stays: an empty mask would ask for nothing.
        """
        views = batch.views
        if views is None:
            raise ValueError("a teacher wants a batch of students' views")
        with needs_room("the teacher"):
            with self.autocast():
                features = self.model.encode_fast(views.image, views.hw)
            parts = self.chunk.parts(len(batch.mask))
            found = [self._answers(features, batch.masks(part), prompts.masks(part)) for part in parts]
        return replace(batch, mask=torch.cat(found), views=None)

    def _answers(self, features: Tensor, batch: TrainBatch, prompts: Prompts) -> Tensor:
        """The targets of some masks, like their pseudo-labels. features: `[2 V, C, h, w]`, of the photos."""
        assert batch.views is not None
        seen = batch.views.visible & valid_pixels(batch)
        with self.autocast():
            answer = self.model.decode(features, batch.views.index, prompts, multimask=True)
        losses = mask_losses(answer.logits, batch.mask, seen.to(batch.certainty.dtype), self.weights)
        best = answer.pick(best_of(losses)).logits
        target = (enlarged(best, batch.mask.shape[-1]) > 0) & seen
        some = target.flatten(1).any(1)[:, None, None, None]
        return torch.where(some, target.to(batch.mask.dtype), batch.mask)
