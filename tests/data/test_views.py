"""Students' views: intensity keeps geometry, and pixels, masks and what is visible come from the same photo."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sum.core.cutmix import box_part, cut_box
from sum.data import intensity, views
from sum.data.batches import Mixture, Sample, TrainBatch, collate, image_part
from sum.data.views import StudentViews, mixed
from tests.data.test_augment import Pictures, sample

SIDE = 32


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Views without changes of intensity, in which every pixel can be traced to its photo."""
    monkeypatch.setattr(views, "changed", lambda image, hw, rng: image.clone())


@pytest.mark.parametrize("seed", range(8))
def test_a_box_has_its_share_and_ends_at_the_border(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hw, share, centre = (24, 40), float(rng.random()), (float(rng.random()), float(rng.random()))
    x0, y0, x1, y1 = cut_box(hw, share=share, centre=centre)
    assert 0 <= x0 < x1 <= 40
    assert 0 <= y0 < y1 <= 24
    assert (x1 - x0) * (y1 - y0) <= max(1, share * 24 * 40)
    assert x0 <= centre[0] * 40 < x1 + 1
    part = box_part((x0, y0, x1, y1), side=48, loss_side=48)
    assert int(part.sum()) == (x1 - x0) * (y1 - y0)
    assert part[y0:y1, x0:x1].all()


def test_a_box_in_the_middle_is_of_the_frames_shape() -> None:
    assert cut_box((100, 200), share=0.25, centre=(0.5, 0.5)) == (50, 25, 150, 75)
    assert cut_box((10, 10), share=0.0, centre=(0.99, 0.0)) == (9, 0, 10, 1)
    half = box_part((3, 0, 8, 4), side=8, loss_side=4)  # centres of the small frame: 1, 3, 5, 7
    assert torch.equal(half, torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]).bool())


@pytest.mark.parametrize("hw", [(24, 32), (32, 20)])
@pytest.mark.parametrize("seed", range(4))
def test_a_view_is_put_together_of_two_photos(seed: int, hw: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    plain(monkeypatch)
    first, second = sample(hw, seed=1), sample((28, 26), seed=2)
    rng = np.random.default_rng(seed)
    inner = (min(hw[0], 28), min(hw[1], 26))
    box = cut_box(inner, share=0.4, centre=(rng.random(), rng.random()))
    found = mixed(first, second, box=box, masks=9, rng=rng)
    x0, y0, x1, y1 = box
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[y0:y1, x0:x1] = True
    assert torch.equal(found.image, torch.where(inside, second.image, first.image))
    assert (found.hw.tolist(), found.image_id) == ([*hw], "set/1")
    part = image_part(hw, side=SIDE, loss_side=SIDE)
    assert torch.equal(found.certainty, part.expand_as(found.certainty))
    assert found.views is not None
    assert torch.equal(found.views.image, torch.stack([first.image, second.image]))
    assert found.views.hw.tolist() == [[*hw], [28, 26]]
    for k, which in enumerate(found.views.index.tolist()):
        name, source = found.mask_ids[k], (first, second)[which]
        seen = inside if which else ~inside
        assert torch.equal(found.views.visible[k, 0], seen)
        assert torch.equal(found.mask[k], source.mask[source.mask_ids.index(name)] & seen & (part > 0))
        x, y = found.point[k].round().long().tolist()
        assert found.mask[k, y, x]
    whole = [(first, ~inside), (second, inside)]
    left = sum(bool((mask & seen & (part > 0)).any()) for source, seen in whole for mask in source.mask)
    assert len(found.mask) == left  # at 32 px a tenth of a pixel is enough


def test_the_student_sees_changed_photos_and_the_teacher_plain_ones() -> None:
    first, second = sample((24, 32), seed=1), sample((28, 26), seed=2)
    found = mixed(first, second, box=(4, 5, 16, 15), masks=9, rng=np.random.default_rng(3))
    rng = np.random.default_rng(3)
    want = intensity.changed(first.image, (24, 32), rng=rng)
    want[:, 5:15, 4:16] = intensity.changed(second.image, (28, 26), rng=rng)[:, 5:15, 4:16]
    assert torch.equal(found.image, want)
    cut = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    cut[5:15, 4:16] = True
    assert not torch.equal(found.image[:, ~cut], first.image[:, ~cut])
    assert not torch.equal(found.image[:, cut], second.image[:, cut])
    assert found.views is not None
    assert torch.equal(found.views.image, torch.stack([first.image, second.image]))


def test_masks_of_which_too_little_is_left_are_dropped_and_there_are_never_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain(monkeypatch)
    monkeypatch.setattr(views, "LEAST", 20 * (1024 / SIDE) ** 2)  # 20 px here
    first = sample(seed=1)
    dot = first.mask[1] & (torch.arange(SIDE) < 30)  # the corner mask less its last columns: 4 px, not touched
    first = replace(first, mask=torch.stack([first.mask[0], dot]))
    disc = int(first.mask[0].sum())
    cut = mixed(first, sample(seed=2), box=(0, 0, 20, 14), masks=9, rng=np.random.default_rng(0))
    assert set(cut.mask_ids) == {"disc", "corner"}
    assert cut.views is not None
    rest = [int(mask.sum()) for mask, which in zip(cut.mask, cut.views.index.tolist(), strict=True) if which == 0]
    assert sorted(rest) != sorted([disc, int(dot.sum())])  # the disc lost a part of it
    gone = mixed(first, sample(seed=2), box=(2, 2, 16, 17), masks=9, rng=np.random.default_rng(0))
    assert gone.views is not None
    own = [name for name, which in zip(gone.mask_ids, gone.views.index.tolist(), strict=True) if which == 0]
    assert own == ["corner"]  # it is small, but it was before
    few = mixed(first, sample(seed=2), box=(0, 0, 20, 14), masks=1, rng=np.random.default_rng(0))
    assert len(few.mask) == len(few.mask_ids) == len(few.point) == len(few.views.index) == 1  # type: ignore[union-attr]


def test_a_view_without_any_mask_is_its_photo_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    plain(monkeypatch)
    first, second = sample(seed=1), sample(seed=2)
    first = replace(first, mask=first.mask[:1], point=first.point[:1], certainty=first.certainty[:1])
    second = replace(second, mask=second.mask[1:], point=second.point[1:], certainty=second.certainty[1:])
    found = mixed(first, second, box=(0, 0, 24, 24), masks=9, rng=np.random.default_rng(0))
    assert torch.equal(found.image, first.image)
    assert torch.equal(found.mask, first.mask)
    assert found.views is not None
    assert bool(found.views.visible.all())


def test_every_change_of_intensity_keeps_the_frame_and_the_padding() -> None:
    """Edges stay where they are: a picture of two halves stays one, but for a blurred or sharpened seam."""
    image = torch.zeros(3, SIDE, SIDE, dtype=torch.uint8)
    image[:, :24, :16] = torch.tensor([200, 40, 90], dtype=torch.uint8)[:, None, None]
    image[:, :24, 16:28] = torch.tensor([10, 160, 60], dtype=torch.uint8)[:, None, None]
    seen = set()
    for seed in range(60):
        found = intensity.changed(image, (24, 28), rng=np.random.default_rng(seed))
        assert (found.shape, found.dtype) == (image.shape, torch.uint8)
        assert not found[:, 24:].any()
        assert not found[:, :, 28:].any()
        for half in (found[:, :24, :6], found[:, :24, 26:28]):
            assert (half.amax((1, 2)) - half.amin((1, 2))).max() <= 1
        seen.add(found.numpy().tobytes())
    assert len(seen) > 30
    again = [intensity.changed(image, (24, 28), rng=np.random.default_rng(7)) for _ in range(2)]
    assert torch.equal(*again)


@pytest.mark.parametrize("name", sorted(intensity.POOL))
def test_an_operation_acts_from_its_mildest_to_its_strongest(name: str) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(40, 216, (16, 20, 3), dtype=np.uint8))
    mild, strong = (np.array(intensity.POOL[name](picture, at)).astype(int) for at in (0.0, 0.999))
    before = np.array(picture).astype(int)
    assert mild.shape == strong.shape == before.shape
    if name == "identity":
        assert (mild == before).all()
    elif name in ("autocontrast", "equalize"):
        assert (mild == strong).all()
        assert mild.min() == 0
        assert mild.max() == 255
    elif name == "hue":  # half of the circle either way: the same colours, strength 0.5 leaves them
        still = np.array(intensity.POOL[name](picture, 0.5)).astype(int)
        assert np.abs(still - before).mean() < 4  # HSV of 8 bits rounds
        assert np.abs(mild - before).mean() > 20
    else:
        assert np.abs(mild - before).mean() < np.abs(strong - before).mean()


def same(a: TrainBatch, b: TrainBatch) -> bool:
    assert a.views is not None
    assert b.views is not None
    for one, other in ((a, b), (a.views, b.views)):
        for name in one.__slots__:
            x, y = getattr(one, name), getattr(other, name)
            if isinstance(x, torch.Tensor) and not torch.equal(x, y):
                return False
    return (a.mask_ids, a.views.rows) == (b.mask_ids, b.views.rows)


def test_a_step_is_mixed_the_same_whenever_it_is_asked_and_by_whom() -> None:
    source = StudentViews(source=Pictures())
    assert len(source) == 5
    straight = list(Mixture([Pictures(), source], [1, 1], 4, 2, 7).batches(start=0, stop=4, workers=0))
    resumed = list(Mixture([Pictures(), source], [1, 1], 4, 2, 7).batches(start=2, stop=4, workers=0))
    assert all(same(a, b) for a, b in zip(straight[2:], resumed, strict=True))
    assert straight[0].views is not None
    assert straight[0].views.rows == (1, 3)  # the unlabelled ones
    shares = [Mixture([Pictures(), source], [1, 1], 4, 2, 7, rank, 4).batch(3) for rank in range(4)]
    assert torch.equal(torch.cat([part.image for part in shares]), straight[3].image)
    assert [part.views is not None for part in shares] == [False, True, False, True]


def test_some_images_of_a_batch_keep_their_photos() -> None:
    rng = np.random.default_rng(3)
    source = StudentViews(source=Pictures())
    samples: list[Sample] = [
        sample(seed=9), *(source.sample(n, masks=2, rng=rng) for n in range(2)), sample(seed=8),
    ]  # fmt: skip
    batch = collate(samples)
    where = batch.image_index.tolist()
    for images in ([1, 2], [2], [2, 0], [0, 3]):
        masks = [k for k, row in enumerate(where) if row in images]
        part = batch.of_images(images, masks)
        assert torch.equal(part.image, batch.image[images])
        assert [images[row] for row in part.image_index.tolist()] == [where[k] for k in masks]
        if part.views is None:
            assert images == [0, 3]
            continue
        assert [images[row] for row in part.views.rows] == [row for row in (1, 2) if row in images]
        for place, k in enumerate(masks):
            if where[k] in (1, 2):
                own = samples[where[k]].views
                assert own is not None
                which = own.index[[n for n in range(len(where)) if where[n] == where[k]].index(k)]
                photo = part.views.image[part.views.index[place]]
                assert torch.equal(photo, own.image[which])
                assert torch.equal(part.views.visible[place], batch.views.visible[k])  # type: ignore[union-attr]
