"""The mask-refinement module (paper 3.2.3): SAM's prompt encoder and mask decoder, tuned, on SAM's frozen embedding.

It is asked with everything known of a pseudo-label at once: SAM's logits as mask prompt, the box and the generating
point. How far its answer lies from SAM's is the uncertainty.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from sum.core.uncertainty import OTHERS
from sum.errors import CheckpointError
from sum.models.checkpoint import fill, header_of, read_tensors, save_tensors
from sum.models.segmenter import POSITIVE, Prompts, Segmenter

KIND = "refiner"
_PARTS = ("prompt_encoder.", "mask_decoder.")
_UNREACHED = (  # what point + box + mask prompts with one output never touch
    "prompt_encoder.no_mask_embed.",
    "prompt_encoder.not_a_point_embed.",
    "prompt_encoder.point_embeddings.0.",
    "mask_decoder.iou_prediction_head.",
    *(f"mask_decoder.output_hypernetworks_mlps.{i}." for i in (1, 2, 3)),
)


class _NoImages(nn.Module):
    """Stands where the image encoder of a Sam is: knows the side of the model frame, encodes nothing."""

    def __init__(self, img_size: int) -> None:
        super().__init__()
        self.img_size = img_size


class Refiner(nn.Module):
    """A copy of a Segmenter's prompt encoder and mask decoder; at birth it answers as that SAM does.

    Parameters that its prompts never reach are frozen, so that every trainable one gets a gradient in every step.
    """

    def __init__(self, base: Segmenter) -> None:
        super().__init__()
        sam = Sam(
            image_encoder=_NoImages(base.side),  # stands in for SAM's class
            prompt_encoder=deepcopy(base.sam.prompt_encoder),
            mask_decoder=deepcopy(base.sam.mask_decoder),
        )
        self.core = Segmenter(sam, backbone=base.backbone)
        self.core.task_prompt.requires_grad_(False)
        for name, value in sam.named_parameters():
            value.requires_grad_(not name.startswith(_UNREACHED))
        self.to(base.task_prompt.device)

    def forward(
        self, embedding: Tensor, image_index: Tensor, *, sam_logits: Tensor, box: Tensor, point: Tensor
    ) -> Tensor:
        """Refine N masks on B images.

        embedding `[B, C, h, w]`; image_index `[N]`; sam_logits `[N, 1, L, L]`; box `[N, 4]` xyxy and point `[N, 2]` xy
        in the model frame. Returns refined logits `[N, 1, L, L]`.
        """
        positive = torch.full_like(image_index, POSITIVE)
        prompts = Prompts.from_boxes(box).with_point(point, positive, logits=sam_logits)
        return self.core.decode(embedding, image_index, prompts, multimask=False).logits

    def weights(self) -> dict[str, Tensor]:
        """Name -> tensor of both parts, by stock SAM's names."""
        return {name: value for name, value in self.core.sam.state_dict().items() if name.startswith(_PARTS)}


def save_refiner(path: Path, refiner: Refiner, *, origin: str, about: Mapping[str, str]) -> str:
    """Write the two tuned parts to one safetensors file, atomically; returns its sha256.

    origin: sha256 of the weights file of the SAM it was tuned from; about: what else the header tells a reader.
    """
    head = {"kind": KIND, "backbone": refiner.core.backbone, "origin": origin}
    return save_tensors(path, refiner.weights(), about={**head, **about})


def load_refiner(path: Path, *, base: Segmenter, origin: str) -> Refiner:
    """The refiner of `base` from a local file, in eval mode on the base's device.

    origin: sha256 of the base's weights file; a refiner reads the embedding of the very SAM it was tuned from.

    Raises CheckpointError by name when the file is no refiner, is of another backbone, or was tuned from another SAM.
    """
    tensors = read_tensors(path)
    about = header_of(path)
    if about.get("kind") != KIND:
        raise _refused(path, f"wants a refinement module, found {about.get('kind', 'a whole model')}")
    if about.get("backbone") != base.backbone:
        raise _refused(path, f"refines backbone '{about.get('backbone')}', model.backbone is '{base.backbone}'")
    if about.get("origin") != origin:
        found = f"weights {about.get('origin', 'unknown')[:12]}, model.checkpoint is {origin[:12]}"
        raise _refused(path, f"tuned from another SAM than model.checkpoint: {found}")
    refiner = Refiner(base)
    owner = f"the refiner of backbone '{base.backbone}'"
    fill(refiner.core.sam, tensors, path=path, owner=owner, only=set(refiner.weights()))
    return refiner.eval()


def load_other(folder: Path, *, method: str, base: Segmenter, origin: str) -> Refiner | None:
    """The refiner that an uncertainty method compares with `folder`/model.safetensors, as `load_refiner` loads it.

    None when the method compares none. Raises CheckpointError as `load_refiner`, and when stage refine was not told to
    make it.
    """
    return load_refiner(other_path(folder, method=method), base=base, origin=origin) if method in OTHERS else None


def other_path(folder: Path, *, method: str) -> Path:
    """The weights that a method of OTHERS compares with `folder`/model.safetensors. CheckpointError without them."""
    path = folder / f"{OTHERS[method]}.safetensors"
    if not path.is_file():
        key = method.removeprefix("discrepancy_")
        raise CheckpointError(
            f"{path} is missing: uncertainty.method '{method}' compares it with model.safetensors. Add '{key}' to "
            "refine.discrepancy in params.yaml, then run `dvc repro refine`."
        )
    return path


def _refused(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: {why}. Run `dvc repro refine`.")
