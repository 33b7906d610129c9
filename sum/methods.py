"""The methods of the paper's comparison: each is a set of options of one trainer (method.md section 8)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sum.core.uncertainty import OF_SAM_ALONE, OTHERS, UNCERTAINTY
from sum.data.shards import SUMMARY
from sum.errors import ConfigError, MissingInput


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """What a method switches; the defaults are SUM's."""

    pseudo_labels: bool = True  # mix in unlabelled images
    labels: Literal["sam", "refined"] = "sam"  # they teach SAM's masks, or the refined ones
    doubt: Literal["stored", "confidence", "none"] = "stored"  # u: data/uncertainty's, of SAM's own output, or 0
    maps: frozenset[str] = frozenset()  # methods of data/uncertainty that will do; none named: every one
    weigh_points: bool = True  # points are drawn by certainty; else evenly
    weigh_loss: bool = True  # losses count a pixel as much as it is certain; else every pixel of the image
    task_prompt: Literal["first", "all", "off"] = "first"  # the rounds in which the task prompt is added
    consistency: Literal["off", "mixed", "box"] = "off"  # a teacher's masks are learnt: of boxes and points, or boxes
    contrast: float = 0.0  # weight of the contrastive loss of the image embedding; 0: none

    @property
    def unplanned(self) -> str:
        """What `python -m sum plan` does not count of a step, in words; empty where it counts all."""
        teacher = "; not counted: the teacher's pass without gradients, over two photos for each unlabelled image"
        contrast = "; not counted: the contrastive loss and its bank of keys"
        return teacher * (self.consistency != "off") + contrast * (self.contrast > 0)

    @property
    def reads_maps(self) -> bool:
        """Whether data/uncertainty is looked at: its maps, its refined masks, or which masks have a map at all."""
        return self.pseudo_labels and (self.doubt != "none" or self.labels == "refined")


METHODS: Mapping[str, MethodOptions] = {
    "sum": MethodOptions(),
    "vanilla": MethodOptions(doubt="none", task_prompt="off"),
    "human_only": MethodOptions(pseudo_labels=False, doubt="none", task_prompt="off"),
    "mask_refinement": MethodOptions(
        labels="refined", doubt="none", maps=frozenset(UNCERTAINTY) - OF_SAM_ALONE, task_prompt="off"
    ),
    "sum_without_task_prompt": MethodOptions(task_prompt="off"),
    "sum_continuous_task_prompt": MethodOptions(task_prompt="all"),
    "sum_without_uncertainty_sampling": MethodOptions(weigh_points=False),
    "sum_without_uncertainty_loss": MethodOptions(weigh_loss=False),
    "sum_confidence": MethodOptions(doubt="confidence"),
    "sum_discrepancy": MethodOptions(maps=frozenset(OTHERS)),
    "augseg": MethodOptions(doubt="none", task_prompt="off", consistency="mixed"),
    "augseg_box": MethodOptions(doubt="none", task_prompt="off", consistency="box"),
    "u2pl": MethodOptions(weigh_points=False, weigh_loss=False, contrast=1.0),
}


def doubt_of(method: MethodOptions, *, name: str, maps: Path) -> str:
    """Where u comes from, for the record: a name of UNCERTAINTY, 'none' where no uncertainty is used.

    name: of the method; maps: the folder of stage uncertainty. Raises MissingInput without it, ConfigError when what it
    holds was made with an `uncertainty.method` that this method cannot learn from.
    """
    if not method.reads_maps:
        return "none"
    path = maps / SUMMARY
    if not path.is_file():
        raise MissingInput(path, reader="finetune", maker="uncertainty")
    stored = str(json.loads(path.read_text(encoding="utf-8"))["settings"]["method"])
    if method.maps and stored not in method.maps:
        raise ConfigError(
            f"finetune.method '{name}' wants {maps} made with uncertainty.method {' or '.join(sorted(method.maps))}, "
            f"found '{stored}'. Set uncertainty.method in params.yaml, then run `dvc repro check_labels`."
        )
    return stored if method.doubt == "stored" else method.doubt
