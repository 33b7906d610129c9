"""What some architectures have beside SAM for good: HQ-SAM's head, adapters in the encoder.

LoRA is not among them: it is merged before weights are written.
"""

from __future__ import annotations

import torch

from sum.models.adapter import insert
from sum.models.archs import ArchSpec
from sum.models.hq import HqSegmenter
from sum.models.segmenter import Segmenter

HEAD = "hq."  # names of what lies beside SAM's and the task prompt in a weights file


def with_extras(model: Segmenter, spec: ArchSpec, *, seed: int = 0) -> Segmenter:
    """The model with what a spec adds to a plain SAM; seed: of its first values.

    The model itself but for `hq`, which is another class around the same SAM and task vectors.
    """
    adds, options = spec.arch.adds, spec.options
    if adds == "adapter":
        insert(model.sam.image_encoder, ratio=float(options["ratio"]), scale=float(options["scale"]), seed=seed)
    elif adds == "hq":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hq = HqSegmenter(model.sam, backbone=model.backbone, hq_only=bool(options["token_only"]))
        hq.task_prompt, hq.training = model.task_prompt, model.training
        model = hq
    model.arch = spec
    return model
