"""What the methods learn from: whose masks, whose doubt, and where each is used."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sum.config import load_config
from sum.core.losses import LossWeights, mask_losses
from sum.data.batches import TrainBatch
from sum.data.labels import LabelStore
from sum.data.records import read_manifest
from sum.data.samples import PseudoImages, replaced
from sum.errors import ConfigError
from sum.methods import METHODS, MethodOptions
from sum.models.archs import ARCHS, ArchSpec
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import load_segmenter
from sum.models.extras import with_extras
from sum.models.refiner import Refiner, save_refiner
from sum.models.segmenter import Segmenter
from sum.rounds import Rounds, first_prompts, train_rounds, valid_pixels
from sum.stages import pseudo_label, uncertainty
from sum.storage import sha256_file
from sum.training_settings import Method
from tests.drawing import draw
from tests.stages.label_world import SIZES, WEIGHTS, configure, make_project

PROJECT = Path(__file__).parents[1]
LABELS, MAPS = Path("data/pseudo_labels"), Path("data/uncertainty")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pseudo-labels of five photos, with maps of refinement and of confidence; half of the masks are too small."""
    made = tmp_path_factory.mktemp("methods")
    make_project(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        refiner = Refiner(load_segmenter(WEIGHTS, backbone="tiny"))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in refiner.core.sam.parameters():
                value.add_(0.05 * torch.randn(value.shape, generator=generator))
        save_refiner(Path("data/refiner/model.safetensors"), refiner, origin=sha256_file(WEIGHTS), about={})
        pseudo_label.run(configure(made))
        store = LabelStore(LABELS)
        areas = [
            area * (1024 / max(SIZES[n])) ** 2 for n in range(len(SIZES)) for area in store.areas(f"u/{n}")
        ]  # px at 1024
        for method in ("confidence", "refinement"):
            uncertainty.run(configure(made, uncertainty={"method": method, "min_refine_area": float(np.median(areas))}))
            shutil.copytree(MAPS, f"maps/{method}")
    return made


@pytest.fixture
def world(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def samples(maps: str, *, loss_side: int = 64, **options: str):
    """Store, and (image id, order of the masks, sample) of every photo."""
    store = LabelStore(LABELS, Path("maps") / maps)
    manifest = read_manifest(Path("data/manifest"), reader="test").select(datasets=["u"], split="unlabelled")
    images = PseudoImages(manifest, store, side=128, loss_side=loss_side, **options)  # type: ignore[arg-type]
    found = []
    for number in range(len(images)):
        image_id = images._images[number].image_id
        order = np.random.default_rng(number).permutation(store.count(image_id)).tolist()
        sample = images.sample(number, masks=10**6, rng=np.random.default_rng(number))
        assert sample.mask_ids == tuple(f"{image_id} pseudo-label {k}" for k in order)
        found.append((image_id, order, sample))
    return store, found


def test_the_words_of_params_are_the_methods() -> None:
    assert set(get_args(Method)) == set(METHODS)
    assert len({METHODS[name] for name in METHODS}) == len(METHODS)  # no two are the same
    assert METHODS["sum"] == MethodOptions()


def test_the_table_of_methods_is_what_they_switch() -> None:
    text = (Path(__file__).parents[1] / "docs/training.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    table = {row[0].strip("`"): row[1:] for row in rows if row[0].strip("`") in METHODS}
    assert table.keys() == METHODS.keys()
    doubt = {"stored": "stored maps", "confidence": "SAM's own confidence", "none": "none"}
    for name, (labels, u, points, loss, task) in table.items():
        method = METHODS[name]
        assert labels == {"sam": "SAM's masks", "refined": "refined masks"}[method.labels] or not method.pseudo_labels
        assert u == ("disagreement of two refiners" if name == "sum_discrepancy" else doubt[method.doubt])
        used = {True: "yes", False: "no"}
        for word, weighs in ((points, method.weigh_points), (loss, method.weigh_loss)):
            assert word == ("-" if method.doubt == "none" else used[weighs])
        assert task == {"first": "first round", "all": "every round", "off": "off"}[method.task_prompt]


def test_confidence_is_derived_from_sam_as_the_stage_stores_it(world: Path) -> None:
    _, derived = samples("refinement", doubt="confidence")
    stored, wanted = samples("confidence")
    without = 0
    for (image_id, order, mine), (_, _, theirs) in zip(derived, wanted, strict=True):
        assert torch.equal(mine.certainty, theirs.certainty)
        unknown = torch.from_numpy(~stored.has_map(image_id)[order])
        without += int(unknown.sum())
        height, width = (side // 2 for side in mine.hw.tolist())
        assert bool((mine.certainty[unknown][:, :height, :width] == 1).all())
    assert 0 < without < sum(len(order) for _, order, _ in derived)
    assert min(float(mine.certainty[:, :20, :20].min()) for _, _, mine in derived) < 0.9


@pytest.mark.parametrize("loss_side", [64, 128])
def test_mask_refinement_learns_where_the_refined_probability_is_above_a_half(world: Path, loss_side: int) -> None:
    store, found = samples("refinement", loss_side=loss_side, labels="refined", doubt="none")
    _, plain = samples("refinement", loss_side=loss_side)
    changed = kept = 0
    for (image_id, order, mine), (_, _, sam) in zip(found, plain, strict=True):
        height, width = (side * loss_side // 128 for side in mine.hw.tolist())
        part = torch.zeros(loss_side, loss_side)
        part[:height, :width] = 1
        assert torch.equal(mine.certainty, part.expand_as(mine.certainty))
        refined = torch.from_numpy(store.refined(image_id, order)).double() / 255
        logits = torch.logit(refined, eps=1 / 1020)[None]
        fine = torch.sigmoid(F.interpolate(logits, (loss_side, loss_side), mode="bilinear", align_corners=False))[0]
        for k, has in enumerate(store.has_map(image_id)[order].tolist()):
            want = (fine[k] > 0.5) & (part > 0)
            if has and want.any():
                assert ((mine.mask[k] != want) & ((fine[k] - 0.5).abs() > 1e-4)).sum() == 0
                changed += not torch.equal(mine.mask[k], sam.mask[k])
            else:
                assert torch.equal(mine.mask[k], sam.mask[k])
                kept += 1
            x, y = ((mine.point[k] + 0.5) * loss_side / 128).long().tolist()
            assert mine.mask[k, y, x] or torch.equal(mine.point[k], sam.point[k])
    assert changed
    assert kept


def test_a_point_off_the_refined_mask_moves_to_its_deepest_pixel() -> None:
    before = torch.cat([draw("##... ##... ....."), draw("##... ##... ....."), draw("##... ##... .....")])[:, 0] > 0
    after = torch.cat([draw("..### ..### ..###"), draw("##### ..... ....."), draw("..... ..... .....")])[:, 0] > 0
    points = torch.tensor([[0.5, 0.5]]).repeat(3, 1)
    target, xy = replaced(before, points, after, side=10)
    assert torch.equal(target, torch.stack([after[0], after[1], before[2]]))
    assert xy.tolist() == [[6.5, 2.5], [0.5, 0.5], [0.5, 0.5]]  # pixel (3, 1) of 5 is (6.5, 2.5) of 10
    assert torch.equal(points, torch.full((3, 2), 0.5))


def uncertain_batch() -> TrainBatch:
    """Four squares in two images; the left half of every one is uncertain."""
    mask = torch.zeros(4, 1, 64, 64)
    for k in range(4):
        mask[k, 0, 10 + k : 30 + k, 20:44] = 1
    certainty = torch.ones(4, 1, 64, 64)
    certainty[..., :32] = 0
    certainty[..., 48:, :] = 0
    return TrainBatch(
        image=torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        hw=torch.tensor([[96, 128], [96, 128]]),
        image_index=torch.arange(4) % 2,
        mask=mask,
        certainty=certainty,
        point=torch.full((4, 2), 60.0),
        task=torch.zeros(4, dtype=torch.int64),
    )


class Listener(Segmenter):
    """Keeps the prompts and the logits of every round."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(BACKBONES["tiny"].build(), backbone="tiny")
        self.xy: list[Tensor] = []
        self.logits: list[Tensor] = []

    def decode(self, *arguments, **options):
        answer = super().decode(*arguments, **options)
        self.xy.append(arguments[2].xy)
        self.logits.append(answer.logits.detach())
        return answer


def listen(batch: TrainBatch, **options: bool) -> tuple[Listener, float]:
    model, rounds = Listener(), Rounds(count=4, box_odds=0.0, task_prompt="off", **options)  # type: ignore[arg-type]
    chance = torch.Generator().manual_seed(3)
    log = train_rounds(model, batch, rounds=rounds, generator=chance, backward=lambda loss: loss.backward())
    return model, float(log["loss"])


def test_without_uncertainty_sampling_points_are_drawn_evenly_and_losses_weighed() -> None:
    batch = uncertain_batch()
    whole = replace(batch, certainty=valid_pixels(batch).float())
    (model, loss), (plain, plain_loss) = listen(batch, weigh_points=False), listen(whole)
    for mine, theirs in zip(model.xy, plain.xy, strict=True):  # the draws of a batch without doubt
        assert torch.equal(mine, theirs)
    assert loss != plain_loss
    first = mask_losses(
        F.interpolate(model.logits[0], (64, 64), mode="bilinear"), batch.mask, batch.certainty, LossWeights()
    )
    alone, _ = listen_first(batch, weigh_points=False)
    assert alone == pytest.approx(float(first.min(1).values.mean()), rel=1e-4)


def listen_first(batch: TrainBatch, **options: bool) -> tuple[float, Listener]:
    """Mask losses alone of one round."""
    model = Listener()
    rounds = Rounds(count=1, box_odds=0.0, task_prompt="off", weights=LossWeights(iou=0.0), **options)  # type: ignore[arg-type]
    chance = torch.Generator().manual_seed(3)
    log = train_rounds(model, batch, rounds=rounds, generator=chance, backward=lambda loss: loss.backward())
    return float(log["loss"]), model


def test_without_uncertainty_loss_points_are_certain_and_losses_plain() -> None:
    batch = uncertain_batch()
    model, _ = listen(batch, weigh_loss=False)
    for xy in (model.xy[0][:, 0], *(asked[:, 0] for asked in model.xy[1:3])):  # the last round adds no point
        assert bool((xy[:, 0] >= 64).all())  # pixel 32 of 64 is 64 of 128
        assert bool((xy[:, 1] < 96).all())
    loss, one = listen_first(batch, weigh_loss=False)
    plain = mask_losses(one.logits[0], batch.mask, valid_pixels(batch).float(), LossWeights())
    assert loss == pytest.approx(float(plain.min(1).values.mean()), rel=1e-4)
    weighed, _ = listen_first(batch)
    assert weighed != loss


def test_even_points_reach_the_uncertain_half() -> None:
    batch, evenly = uncertain_batch(), Rounds(box_odds=0.0)
    whole = replace(batch, certainty=valid_pixels(batch).float())
    xy = [
        first_prompts(whole, side=128, rounds=evenly, seeds=torch.arange(len(batch.mask)) + 100 * s).xy[:, 0]
        for s in range(20)
    ]
    assert 0.3 < float((torch.cat(xy)[:, 0] < 64).float().mean()) < 0.7  # 80 draws, 12 of 24 columns: sd 0.06


@pytest.mark.parametrize("arch", sorted(ARCHS))
@pytest.mark.parametrize("encoder", [True, False])
def test_u2pl_wants_an_encoder_that_learns_when_settings_are_read(arch: str, encoder: bool) -> None:
    words = ["finetune.method=u2pl", f"finetune.arch={arch}"]
    options = {"encoder": encoder, "decoder": True} if arch == "lora" else {}
    words += [f"finetune.lora.{name}={str(value).lower()}" for name, value in options.items()]
    if ArchSpec(arch, options).encoder_learns:
        assert load_config(words, root=PROJECT).finetune.arch == arch
    else:
        with pytest.raises(ConfigError, match=rf"with arch {re.escape(arch)} no part of the image encoder learns"):
            load_config(words, root=PROJECT)


@pytest.mark.parametrize("arch", sorted(ARCHS))
def test_archs_with_one_shot_prompts_are_those_with_one_output(arch: str) -> None:
    """So the tables of an ablation tell them apart."""
    model = Segmenter(BACKBONES["tiny"].build(), backbone="tiny")
    assert with_extras(model, ArchSpec(arch)).single_output == ARCHS[arch].one_shot
