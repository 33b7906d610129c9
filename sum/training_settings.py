"""The sections of params.yaml that train: pre-training, refinement module, fine-tuning; the others: sum/settings.py."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import ConfigDict

from sum.limits import at_least, require, share

_STRICT = ConfigDict(extra="forbid")
Method = Literal[  # the keys of sum.methods.METHODS
    "sum",
    "vanilla",
    "human_only",
    "mask_refinement",
    "sum_without_task_prompt",
    "sum_continuous_task_prompt",
    "sum_without_uncertainty_sampling",
    "sum_without_uncertainty_loss",
    "sum_confidence",
    "sum_discrepancy",
    "augseg",
    "augseg_box",
    "u2pl",
]

Arch = Literal[  # the keys of sum.models.archs.ARCHS
    "full", "decoder", "decoder+prompt_encoder", "lora", "adapter", "hq"
]


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and the loop around it."""

    __pydantic_config__ = _STRICT
    steps: int  # optimizer steps
    lr: float  # peak
    images_per_batch: int  # over all processes
    masks_per_image: int = 30  # drawn at random a step
    mask_chunk: int | None = None  # masks that train at once; null: all. Same gradients; out of memory halves it
    layer_decay: float = 1.0  # learning rate of encoder layer i: lr * decay ** (layers - i)
    weight_decay: float = 0.1
    warmup_steps: int = 0  # linear from 0
    decay_steps: int = 0  # linear to 0 over the last steps
    drop_last: int = 0  # last steps at a tenth of the rate, instead; HQ-SAM's are 2 of 12 epochs
    clip_norm: float = 0.1  # of the gradient; 0 for none
    max_skipped: int = 10  # steps in a row, left out because loss or gradient is not finite, that end the run
    ema: float = 0.0  # decay of an average of the weights that is used in the end; 0 for none
    precision: Literal["fp32", "bf16"] = "fp32"  # autocast of encoder and decoder; losses are always fp32
    checkpoint_every: int = 200  # steps; what a kill can cost
    workers: int = 0  # processes that read ahead

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "images_per_batch", "masks_per_image", "checkpoint_every", "max_skipped")
        at_least(self, 0, "weight_decay", "warmup_steps", "decay_steps", "drop_last", "clip_norm", "workers")
        if self.mask_chunk is not None:
            at_least(self, 1, "mask_chunk")
        require(self.lr > 0, f"lr must be above 0, got {self.lr}")
        require(0 < self.layer_decay <= 1, f"layer_decay must be in (0, 1], got {self.layer_decay}")
        require(0 <= self.ema < 1, f"ema must be in [0, 1), got {self.ema}")
        require(
            self.warmup_steps + self.decay_steps <= self.steps,
            f"warmup_steps {self.warmup_steps} + decay_steps {self.decay_steps} exceed steps {self.steps}",
        )
        both = self.drop_last and self.decay_steps
        require(not both, "drop_last and decay_steps are two ways to end: set one of them to 0")
        require(
            self.warmup_steps + self.drop_last <= self.steps,
            f"warmup_steps {self.warmup_steps} + drop_last {self.drop_last} exceed steps {self.steps}",
        )


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """Interactive training (Appendix B.1) and its losses (3.2.1)."""

    __pydantic_config__ = _STRICT
    rounds: int = 7  # prompts of a mask in a step
    idle_last: bool = True  # the last round adds no point, it only feeds the logits back
    box_odds: float = 0.5  # share of masks whose first prompt is a box
    box_noise: float = 0.1  # sd of each coordinate, share of the box's side
    box_noise_limit: float = 20.0  # px of a 1024 frame
    loss_side: int | None = None  # px at which loss and sampling happen; null: the model's side
    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    iou_of_all: bool = False  # the IoU head learns from all three outputs, not only the best one
    theta: float = 0.6  # Dice keeps pixels of certainty above; padding, of certainty 0, never

    def __post_init__(self) -> None:
        at_least(self, 1, "rounds")
        share(self, "box_odds")
        at_least(self, 0, "box_noise", "box_noise_limit", "focal_weight", "dice_weight", "iou_weight", "theta")
        require(self.loss_side is None or self.loss_side >= 8, f"loss_side must be at least 8 px, got {self.loss_side}")
        require(self.theta < 1, f"theta must be below 1, got {self.theta}")


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

    def __post_init__(self) -> None:
        at_least(self, 1, "scenes")
        at_least(self, 2, "coarsen")
        at_least(self, 0, "single_round_steps")


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """Training of the mask-refinement module (3.2.3, Appendix D)."""

    __pydantic_config__ = _STRICT
    min_iou: float = 0.7  # a pair with a worse SAM output is dropped
    pred_iou_thresh: float = 0.88  # SAM's own filters
    stability_thresh: float = 0.95
    holdout_share: float = 0.1  # of the images, by hash of the id; measured, never trained on
    discrepancy: list[Literal["teacher", "decoders"]] = field(  # what uncertainty.method discrepancy_* compares
        default_factory=list
    )
    resamples: int = 1000  # of the bootstrap over held-out images
    pictures: int = 6  # a task
    optim: OptimConfig

    def __post_init__(self) -> None:
        share(self, "min_iou", "stability_thresh", "holdout_share")
        at_least(self, 1, "resamples")
        at_least(self, 0, "pictures")
        whole = self.optim.mask_chunk is None
        require(whole, "optim.mask_chunk is of interactive training: this module sees every mask once, set it to null")
        averaged = "teacher" not in self.discrepancy or self.optim.ema > 0
        require(averaged, "discrepancy names teacher, the average of the weights: optim.ema must be above 0")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in the attention of a part, whose own weights freeze (Hu et al. 2021; SAMed): arch `lora`."""

    __pydantic_config__ = _STRICT
    encoder: bool = True
    decoder: bool = False
    rank: int = 4
    alpha: float = 4.0  # an adapter is scaled by alpha / rank

    def __post_init__(self) -> None:
        require(self.encoder or self.decoder, "lora wants encoder or decoder to be true; finetune.arch switches it off")
        at_least(self, 1, "rank")
        require(self.alpha > 0, f"alpha must be above 0, got {self.alpha}")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Bottlenecks in the blocks of the image encoder, whose own weights freeze (AIM; SAM-Adapter): arch `adapter`."""

    __pydantic_config__ = _STRICT
    ratio: float = 0.25  # width of the bottleneck, share of the layer's
    scale: float = 0.5  # of the one beside the MLP

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, f"ratio must be in (0, 1], got {self.ratio}")
        require(self.scale > 0, f"scale must be above 0, got {self.scale}")


@dataclass(frozen=True, kw_only=True)
class HqConfig:
    """HQ-SAM's head (Ke et al. 2023): arch `hq`."""

    __pydantic_config__ = _STRICT
    token_only: bool = False  # what is published answers the head's logits alone, not SAM's + the head's


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Changes of training images; the paper has none."""

    __pydantic_config__ = _STRICT
    flip: float = 0.0  # odds of a horizontal flip
    scale: list[float] = field(default_factory=lambda: [1.0, 1.0])  # lowest and highest factor of the image's size

    def __post_init__(self) -> None:
        share(self, "flip")
        good = len(self.scale) == 2 and 0.1 <= self.scale[0] <= self.scale[1] <= 10
        require(good, f"scale wants a lowest and a highest factor within 0.1..10, got {self.scale}")


@dataclass(frozen=True, kw_only=True)
class EarlyStopConfig:
    """When training ends before its last step, by IoU after one click on human train images that it does not see."""

    __pydantic_config__ = _STRICT
    patience: int = 0  # checkpoints without a higher figure; 0: never, and nothing is held out
    held_out: float = 0.1  # share of the images, by content hash

    def __post_init__(self) -> None:
        at_least(self, 0, "patience")
        require(0 < self.held_out < 1, f"held_out must be in (0, 1), got {self.held_out}")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptimConfig(OptimConfig):
    """As OptimConfig; what may be left out is the paper's (appendix B.1)."""

    layer_decay: float = 0.8


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tuning of one budget."""

    __pydantic_config__ = _STRICT
    method: Method = "sum"
    arch: Arch = "full"  # what learns; the rest of SAM is frozen
    lora: LoraConfig = field(default_factory=LoraConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    hq: HqConfig = field(default_factory=HqConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    accumulate: int = 1  # pieces in which a process goes through its images of a step: less memory, the same gradient
    recompute_encoder: bool = False  # run the encoder's blocks again in the backward pass: less memory, same gradient
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    optim: FinetuneOptimConfig
    rounds: RoundsConfig

    def __post_init__(self) -> None:
        require(
            1 <= self.accumulate <= self.optim.images_per_batch,
            f"accumulate must lie in 1..{self.optim.images_per_batch} (optim.images_per_batch), got {self.accumulate}",
        )
        taught = not self.method.startswith("augseg") or self.optim.ema > 0
        require(taught, f"method {self.method}: its teacher is the average of the weights; set optim.ema, 0.99 say")
        three = not self.method.startswith("augseg") or self.arch != "hq"
        require(three, f"method {self.method} chooses among three outputs, and arch hq has one: use another of the two")
        lora = self.arch != "lora" or self.lora.encoder
        learns = self.method != "u2pl" or (self.arch in ("full", "lora", "adapter") and lora)
        require(
            learns,
            f"method u2pl: its contrastive loss is of the image embedding, and with arch {self.arch} no part of the "
            "image encoder learns: use full, adapter, or lora with lora.encoder: true",
        )

    def of_weights(self) -> dict[str, Any]:
        """The settings without those that change no bit of the weights: a training goes on when one of them changes.

        Not among those are accumulate and mask_chunk, which change the order of sums.
        """
        found = asdict(self)
        del found["recompute_encoder"], found["optim"]["workers"], found["optim"]["max_skipped"]
        if not self.early_stop.patience:  # else the weights are judged at each checkpoint
            del found["optim"]["checkpoint_every"]
        return found
