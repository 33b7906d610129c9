"""The shape of params.yaml: one frozen dataclass a section, the unit behind every number.

`sum.config.load_config` fills it; pydantic refuses unknown keys and wrong types by path, `__post_init__` refuses
impossible values.
A default here is the paper's value where the paper fixes one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict

_STRICT = ConfigDict(extra="forbid")
Task = Literal["unspecified", "salient", "entity", "part"]
Method = Literal["sum", "vanilla", "human_only"]


def _require(good: bool, message: str) -> None:
    if not good:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which SAM is tuned."""

    __pydantic_config__ = _STRICT
    backbone: str = "tiny"  # a name of sum.models.backbones.BACKBONES
    checkpoint: str = "sum/models/weights/tiny.safetensors"  # our .safetensors or Meta's .pth, a path or s3://


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where MLflow keeps runs and models; the environment variable MLFLOW_TRACKING_URI wins over `uri`."""

    __pydantic_config__ = _STRICT
    uri: str = "sqlite:///mlflow.db"
    experiment: str = "sum"
    model: str = "sum"  # registered models: NAME and NAME-ft-BUDGET


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The generated data sets under data/raw/demo; scenes 0 everywhere turns the demo off."""

    __pydantic_config__ = _STRICT
    side: int = 128  # px, height and width of a scene
    seed: int = 11  # of the evaluation and training scenes; pre-training has its own
    scenes: dict[str, int] = field(default_factory=dict)  # data set -> number of images


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One data set: where it lies, how it is laid out, what its masks mean."""

    __pydantic_config__ = _STRICT
    kind: Literal["raster", "coco", "images"]  # a name of sum.data.layouts.LAYOUTS
    root: str  # folder, relative to the project, or s3://bucket/prefix
    split: Literal["train", "test", "unlabelled"]
    task: Task = "unspecified"
    licence: str  # SPDX name or a phrase; kept with every model trained on it
    images: str = "images"  # folder of the photos below root
    masks: str = "masks"  # raster: folder of NAME.png, one mask an image
    annotations: str = "annotations.json"  # coco: the file below root
    names: str | None = None  # raster, images: a file below root with one NAME a line
    threshold: int = 127  # raster: a mask is where the grey value is above

    def __post_init__(self) -> None:
        _require(0 <= self.threshold < 255, f"threshold must be in 0..254, got {self.threshold}")
        _require(
            (self.split == "unlabelled") == (self.kind == "images"),
            f"kind 'images' and split 'unlabelled' belong together, got kind '{self.kind}' with split '{self.split}'",
        )
        _require(
            self.split == "unlabelled" or self.task != "unspecified",
            "human masks need a task: salient, entity or part",
        )


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """What one model is trained on (paper section 4; method.md section 2)."""

    __pydantic_config__ = _STRICT
    human: list[str]  # names of `datasets` with split train
    unlabelled: list[str]  # names of `datasets` with split unlabelled
    human_per_unlabelled: int = 1  # images in a batch: 1 for small and medium, 2 for large

    def __post_init__(self) -> None:
        _require(bool(self.human), "human must name at least one data set")
        _require(
            self.human_per_unlabelled >= 1, f"human_per_unlabelled must be at least 1, got {self.human_per_unlabelled}"
        )


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Reading the data sets into the manifest."""

    __pydantic_config__ = _STRICT
    on_bad: Literal["fail", "skip"] = "fail"  # an unusable image or mask: stop, or list it and go on


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """What the manifest must fulfil."""

    __pydantic_config__ = _STRICT
    min_side: int = 32  # px, of an image
    max_side: int = 20_000  # px
    min_area: int = 16  # px, of a mask at original size
    max_area_share: float = 0.99  # of the image: a whole-image mask is an error


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and the loop around it."""

    __pydantic_config__ = _STRICT
    steps: int  # optimizer steps
    lr: float  # peak
    images_per_batch: int  # over all processes
    masks_per_image: int = 30  # drawn at random a step
    layer_decay: float = 1.0  # learning rate of encoder layer i: lr * decay ** (layers - i)
    weight_decay: float = 0.1
    warmup_steps: int = 0  # linear from 0
    decay_steps: int = 0  # linear to 0 over the last steps
    clip_norm: float = 0.1  # of the gradient; 0 for none
    ema: float = 0.0  # decay of an average of the weights that is used in the end; 0 for none
    precision: Literal["fp32", "bf16"] = "fp32"  # autocast of encoder and decoder; losses are always fp32
    checkpoint_every: int = 200  # steps; what a kill can cost
    workers: int = 0  # processes that read ahead

    def __post_init__(self) -> None:
        for name in ("steps", "images_per_batch", "masks_per_image", "checkpoint_every"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        _require(self.lr > 0, f"lr must be above 0, got {self.lr}")
        _require(0 < self.layer_decay <= 1, f"layer_decay must be in (0, 1], got {self.layer_decay}")
        _require(0 <= self.ema < 1, f"ema must be in [0, 1), got {self.ema}")
        _require(
            self.warmup_steps + self.decay_steps <= self.steps,
            f"warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps} exceed steps {self.steps}",
        )


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """Interactive training (Appendix B.1) and its losses (3.2.1)."""

    __pydantic_config__ = _STRICT
    rounds: int = 7  # prompts a step
    idle_last: bool = True  # the last round adds no point, it only feeds the logits back
    box_odds: float = 0.5  # share of masks whose first prompt is a box
    box_noise: float = 0.1  # sd of each coordinate, share of the box's side
    box_noise_limit: float = 20.0  # px of a 1024 frame
    loss_side: int | None = None  # px at which loss and sampling happen; null: the model's side
    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    iou_of_all: bool = False  # the IoU head learns from all three outputs, not only the best one
    theta: float = 0.6  # Dice keeps pixels of certainty above

    def __post_init__(self) -> None:
        _require(self.rounds >= 1, f"rounds must be at least 1, got {self.rounds}")
        _require(0 <= self.box_odds <= 1, f"box_odds must be in 0..1, got {self.box_odds}")
        _require(self.theta < 1, f"theta must be below 1, got {self.theta}")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The recipe of the tiny backbone's base weights: SAM's interactive training on coarse masks."""

    __pydantic_config__ = _STRICT
    scenes: int  # demo scenes of the pre-training range, made once and kept in work/
    seed: int
    coarsen: int = 5  # px of a 128 frame: thinner structures and smaller holes are lost
    manifest: str | None = None  # also the human train masks of this manifest, coarsened: half of each batch
    start: str | None = None  # weights to go on from; null: random ones
    output: str = "sum/models/weights/tiny.safetensors"
    single_round_steps: int = 0  # first steps with one prompt only: twice as fast, and most is learnt there
    optim: OptimConfig
    rounds: RoundsConfig


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """Training of the mask-refinement module (3.2.3, Appendix D)."""

    __pydantic_config__ = _STRICT
    min_iou: float = 0.7  # a pair with a worse SAM output is dropped
    pred_iou_thresh: float = 0.88  # SAM's own filters
    stability_thresh: float = 0.95
    holdout_share: float = 0.1  # of the images, by hash of the id; measured, never trained on
    optim: OptimConfig


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """SAM's automatic mask generation (Appendix B.1)."""

    __pydantic_config__ = _STRICT
    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_thresh: float = 0.95
    stability_offset: float = 1.0  # logits
    max_area_share: float = 0.95  # of the image
    box_nms_thresh: float = 0.7
    min_area: float = 100.0  # px at a 1024 frame, as the official loader
    shard_images: int = 64  # images a shard; what a kill can cost


@dataclass(frozen=True, kw_only=True)
class UncertaintyConfig:
    """Uncertainty maps of the pseudo-labels."""

    __pydantic_config__ = _STRICT
    method: str = "refinement"  # a name of sum.core.uncertainty.UNCERTAINTY
    min_refine_area: float = 10_000.0  # px at a 1024 frame; smaller masks get no map (all 0), min_refine_ratio 100


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tuning of one budget."""

    __pydantic_config__ = _STRICT
    method: Method = "sum"
    optim: OptimConfig
    rounds: RoundsConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The benchmark (Appendix B.3)."""

    __pydantic_config__ = _STRICT
    rounds: int = 6
    first_prompt: Literal["point", "box"] = "point"
    boundary_ratio: float = 0.02  # width of the boundary band, share of the image diagonal
    batch_masks: int = 64  # prompts a decoder call
    report_rounds: list[int] = field(default_factory=lambda: [1, 3, 5])
    resamples: int = 1000  # of the bootstrap over images
    pictures: int = 8  # a task in the report


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """The gate between a registered version and the alias `champion`."""

    __pydantic_config__ = _STRICT
    metric: Literal["iou", "boundary_iou"] = "iou"
    rounds: list[int] = field(default_factory=lambda: [1, 3, 5])
    min_gain: float = 0.0  # overall mean must exceed the base by more
    tolerance: float = 0.01  # no task may fall by more


@dataclass(frozen=True, kw_only=True)
class Config:
    """All of params.yaml."""

    __pydantic_config__ = _STRICT
    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    model: ModelConfig
    tracking: TrackingConfig
    demo: DemoConfig
    datasets: dict[str, DatasetConfig]
    budgets: dict[str, BudgetConfig]
    ingest: IngestConfig
    validate: ValidateConfig
    pretrain: PretrainConfig
    refine: RefineConfig
    pseudo_label: PseudoLabelConfig
    uncertainty: UncertaintyConfig
    finetune: FinetuneConfig
    evaluate: EvaluateConfig
    register: RegisterConfig

    def __post_init__(self) -> None:
        for budget, entry in self.budgets.items():
            for role, wanted in (("human", "train"), ("unlabelled", "unlabelled")):
                for name in getattr(entry, role):
                    where = f"budgets.{budget}.{role}"
                    _require(
                        name in self.datasets,
                        f"{where}: no data set '{name}'; datasets: {', '.join(sorted(self.datasets))}",
                    )
                    split = self.datasets[name].split
                    _require(split == wanted, f"{where}: data set '{name}' has split '{split}', wants '{wanted}'")
