"""The shape of params.yaml: one frozen dataclass a section, the unit behind every number.

`sum.config.load_config` fills it; pydantic refuses unknown keys and wrong types by path, `__post_init__` refuses
impossible values.
A default here is the paper's value where the paper fixes one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pydantic import ConfigDict

from sum.ablation_settings import AblationConfig
from sum.data_settings import DatasetConfig, IngestConfig
from sum.limits import at_least, names, require, share
from sum.training_settings import FinetuneConfig, PretrainConfig, RefineConfig

BUDGETS_TAKEN = {  # a budget is also the name of a model and an alias in MLflow
    "base": "the model before any tuning",
    "champion": "the alias of the version that passed the gate",
    r"latest|[vV]\d+": "a name MLflow gives to versions itself",
}
_STRICT = ConfigDict(extra="forbid")


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
    seeds: dict[str, int] = field(  # split -> seed of its sets; pre-training has its own
        default_factory=lambda: {"train": 11, "val": 12, "test": 13}
    )
    scenes: dict[str, int] = field(default_factory=dict)  # data set -> number of images

    def __post_init__(self) -> None:
        at_least(self, 48, "side")
        require(set(self.seeds) == {"train", "val", "test"}, f"seeds must name train, val and test, got {self.seeds}")
        require(all(seed >= 0 for seed in self.seeds.values()), f"seeds must be 0 or more, got {self.seeds}")
        require(all(count >= 0 for count in self.scenes.values()), f"scenes must be 0 or more, got {self.scenes}")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """What one model is trained on (paper section 4; method.md section 2)."""

    __pydantic_config__ = _STRICT
    human: list[str]  # names of `datasets` with split train
    unlabelled: list[str]  # names of `datasets` with split unlabelled
    human_per_unlabelled: int = 1  # images in a batch: 1 for small and medium, 2 for large

    def __post_init__(self) -> None:
        require(bool(self.human), "human must name at least one data set")
        require(bool(self.unlabelled), "unlabelled must name at least one data set")
        require(
            self.human_per_unlabelled >= 1, f"human_per_unlabelled must be at least 1, got {self.human_per_unlabelled}"
        )


@dataclass(frozen=True, kw_only=True)
class ValidateConfig:
    """What the manifest must fulfil."""

    __pydantic_config__ = _STRICT
    min_side: int = 32  # px, of an image
    max_side: int = 20_000  # px
    min_area: int = 16  # px, of a mask at original size
    max_area_share: float = 0.99  # of the image: a whole-image mask is an error
    on_copy: Literal["error", "warning"] = "error"  # a train or unlabelled photo that looks like one of a test set
    copy_bits: int = 8  # of 64: perceptual hashes of copies differ by at most so many (benchmarks/copies.py)
    copy_likeness: float = 0.95  # and small grey pictures correlate at least so much
    allowed_copies: list[list[str]] = field(  # [pattern of the photo's id, pattern of the test photo's id]: no finding
        default_factory=list
    )

    def __post_init__(self) -> None:
        at_least(self, 1, "min_side", "min_area")
        at_least(self, self.min_side, "max_side")
        share(self, "max_area_share", "copy_likeness")
        require(0 <= self.copy_bits <= 16, f"copy_bits must lie in 0..16, got {self.copy_bits}")
        for pair in self.allowed_copies:
            require(len(pair) == 2, f"allowed_copies wants pairs [pattern, pattern of the test photo], got {pair}")


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """SAM's automatic mask generation (Appendix B.1)."""

    __pydantic_config__ = _STRICT
    points_per_side: int = 32
    points_per_batch: int = 64
    images_per_batch: int = 1  # images, or crops of them, that share an encoder call and batches of prompts
    pred_iou_thresh: float = 0.88
    stability_thresh: float = 0.95
    stability_offset: float = 1.0  # logits
    max_area_share: float = 0.95  # of the image
    box_nms_thresh: float = 0.7
    min_area: float = 100.0  # px at a 1024 frame, as the official loader
    crop_n_layers: int = 0  # layer i looks again at (2 ** i) ** 2 crops of the image, each costs an encoder call
    crop_overlap_ratio: float = 512 / 1500  # of the image's short side, in the first layer
    crop_n_points_downscale_factor: int = 1  # layer i has points_per_side / factor ** i points a side
    crop_nms_thresh: float = 0.7  # IoU of boxes; between crops, where the mask of the smaller crop wins
    min_mask_region_area: float = 0.0  # px of the original; smaller holes and islands of a mask are removed; 0: none
    precision: Literal["fp32", "bf16"] = "fp32"  # of encoder and decoder; with bf16 other masks are found
    shard_images: int = 64  # images a shard at most, on average; what a kill can cost
    on_bad: Literal["skip", "fail"] = "skip"  # a photo that cannot be read: left out and listed, or the stage fails

    def __post_init__(self) -> None:
        at_least(
            self,
            1,
            "points_per_side",
            "points_per_batch",
            "images_per_batch",
            "shard_images",
            "crop_n_points_downscale_factor",
        )
        at_least(self, 0, "stability_offset", "min_area", "max_area_share", "crop_n_layers", "min_mask_region_area")
        share(self, "stability_thresh", "box_nms_thresh", "crop_nms_thresh")
        require(self.crop_n_layers <= 4, f"crop_n_layers must be at most 4 (340 crops), got {self.crop_n_layers}")
        require(
            0 <= self.crop_overlap_ratio < 1, f"crop_overlap_ratio must be in [0, 1), got {self.crop_overlap_ratio}"
        )
        fewest = self.points_per_side // self.crop_n_points_downscale_factor**self.crop_n_layers
        require(
            fewest >= 1,
            f"points_per_side {self.points_per_side} is no point at all after crop_n_layers {self.crop_n_layers} of "
            f"crop_n_points_downscale_factor {self.crop_n_points_downscale_factor}",
        )


@dataclass(frozen=True, kw_only=True)
class UncertaintyConfig:
    """Uncertainty maps of the pseudo-labels."""

    __pydantic_config__ = _STRICT
    method: str = "refinement"  # a name of sum.core.uncertainty.UNCERTAINTY
    min_refine_area: float = 10_000.0  # px at a 1024 frame; smaller masks get no map (all 0), min_refine_ratio 100

    def __post_init__(self) -> None:
        at_least(self, 0, "min_refine_area")


@dataclass(frozen=True, kw_only=True)
class CheckLabelsConfig:
    """What is asked of pseudo-labels beyond what `pseudo_label` promised."""

    __pydantic_config__ = _STRICT
    max_predicted_iou: float = 1.5  # above: a warning; SAM's head is not bounded
    max_share_without_masks: float = 0.5  # of the labelled images of a data set; above: a warning

    def __post_init__(self) -> None:
        at_least(self, 1, "max_predicted_iou")
        share(self, "max_share_without_masks")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """The benchmark (Appendix B.3)."""

    __pydantic_config__ = _STRICT
    rounds: int = 6  # 1..9
    prompts: list[Literal["point", "box", "boundary", "random"]] = field(  # a game each, the first is the main one
        default_factory=lambda: ["point", "box"]
    )
    unspecified: bool = True  # play the main game with task prompt 'unspecified', too
    everything: bool = True  # automatic mask generation, too, as pseudo_label asks for it
    fidelity: bool = True  # and the checks that prompts are obeyed
    prompt_seed: int = 0  # of random; not `seed`, so that models trained by other seeds are asked alike
    boundary_ratio: float = 0.02  # width of the boundary band, share of the image diagonal
    batch_masks: int = 64  # prompts a decoder call
    workers: int = 2  # images played at once: clicks and scores of one while the model answers another
    report_rounds: list[int] = field(default_factory=lambda: [1, 3, 5])
    resamples: int = 1000  # of the bootstrap over images
    pictures: int = 8  # a task in the report

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_masks", "resamples", "workers")
        at_least(self, 0, "pictures", "prompt_seed")
        once = bool(self.prompts) and len(set(self.prompts)) == len(self.prompts)
        require(once, f"prompts must name at least one first prompt, each once, got {self.prompts}")
        require(1 <= self.rounds <= 9, f"rounds must lie in 1..9, got {self.rounds}")  # 9: the paper's longest, Fig. 1
        require(0 < self.boundary_ratio < 1, f"boundary_ratio must be in (0, 1), got {self.boundary_ratio}")
        require(bool(self.report_rounds), "report_rounds must name at least one round")


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """The gate between a registered version and the alias `champion`."""

    __pydantic_config__ = _STRICT
    metric: Literal["iou", "boundary_iou"] = "iou"
    rounds: list[int] = field(default_factory=lambda: [1, 3, 5])
    min_gain: float = 0.0  # lower bound of the overall gain on the base must be more
    tolerance: float = 0.01  # lower bound of no task, with no kind of prompt, may be a greater fall
    fidelity_tolerance: float = 0.05  # nor that of the share of masks that pass a check of fidelity
    min_yield: float = 0.5  # masks of automatic generation, as a share of the base's, over all and in every task
    require: list[Literal["point", "box", "boundary", "random", "everything", "fidelity"]] = field(
        default_factory=lambda: ["point", "box", "everything", "fidelity"]  # what must have been evaluated
    )
    override: str = ""  # a reason, for one run on the command line: champion against the gate

    def __post_init__(self) -> None:
        at_least(self, 0, "tolerance", "fidelity_tolerance")
        share(self, "min_yield")
        require(bool(self.rounds), "rounds must name at least one round")


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
    check_labels: CheckLabelsConfig
    finetune: FinetuneConfig
    evaluate: EvaluateConfig
    register: RegisterConfig
    ablation: AblationConfig = field(default_factory=AblationConfig)

    def __post_init__(self) -> None:
        at_least(self, 0, "seed")
        require(self.seed < 2**31, f"seed must be below 2**31, got {self.seed}")  # seed and step share 64 bits
        names(self.budgets, where="budgets", taken=BUDGETS_TAKEN)
        names(self.datasets, where="datasets", taken={"all": "where MLflow keeps the means over all data sets"})
        for made in ("teacher", "decoders"):
            asked = self.uncertainty.method == f"discrepancy_{made}"
            require(
                not asked or made in self.refine.discrepancy,
                f"uncertainty.method is discrepancy_{made}: refine.discrepancy must name {made}",
            )
        method, maps = self.finetune.method, self.uncertainty.method  # sum.methods looks at the stored maps themselves
        require(
            method != "sum_discrepancy" or maps.startswith("discrepancy_"),
            f"finetune.method {method} wants uncertainty.method discrepancy_teacher or _decoders, got {maps}",
        )
        require(
            method != "mask_refinement" or maps not in ("none", "confidence"),
            f"finetune.method {method} learns refined masks: uncertainty.method {maps} makes none, refinement does",
        )
        for where, rounds in (
            ("evaluate.report_rounds", self.evaluate.report_rounds),
            ("register.rounds", self.register.rounds),
        ):
            good = all(1 <= number <= self.evaluate.rounds for number in rounds)
            require(good, f"{where} must lie in 1..{self.evaluate.rounds} (evaluate.rounds), got {rounds}")
        for budget, entry in self.budgets.items():
            for role, wanted in (("human", "train"), ("unlabelled", "unlabelled")):
                for name in getattr(entry, role):
                    where = f"budgets.{budget}.{role}"
                    require(
                        name in self.datasets,
                        f"{where}: no data set '{name}'; datasets: {', '.join(sorted(self.datasets))}",
                    )
                    split = self.datasets[name].split
                    require(split == wanted, f"{where}: data set '{name}' has split '{split}', wants '{wanted}'")
