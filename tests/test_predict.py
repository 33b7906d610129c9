"""Predictor against segment_anything's SamPredictor: bit for bit without a task, and what a task changes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from sum.errors import CheckpointError, ConfigError, DataError
from sum.models.checkpoint import fingerprint, load_segmenter, save_segmenter
from sum.models.segmenter import TASKS, Segmenter
from sum.predict import Predictor

PROJECT = Path(__file__).parents[1]
TINY = PROJECT / "sum/models/weights/tiny.safetensors"
SHAPES = ((90, 128), (128, 61), (333, 500))
CLICK = {"point_coords": np.array([[40.0, 30.0]]), "point_labels": np.array([1])}
BOX = np.array([10.0, 20.0, 50.0, 80.0])
PROMPTS: dict[str, dict[str, Any]] = {
    "point": CLICK,
    "points": {"point_coords": np.array([[40, 30], [12, 80]]), "point_labels": np.array([1, 0])},
    "box": {"box": BOX},
    "box and point": {**CLICK, "box": BOX},
    "mask": {**CLICK, "mask_input": np.random.default_rng(1).normal(size=(1, 64, 64)).astype(np.float32)},
    "mask alone": {"mask_input": np.random.default_rng(1).normal(size=(1, 64, 64)).astype(np.float32)},
    "nothing": {},
}


def image(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    rows, columns = (np.arange(side) * 8 // side for side in shape)
    return coarse[rows][:, columns]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights with task vectors, as finetune writes them."""
    model = load_segmenter(TINY, backbone="tiny")
    generator = torch.Generator().manual_seed(3)
    model.task_prompt.data[:] = torch.randn(4, 64, generator=generator)
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    save_segmenter(path, model, about={})
    return path


@pytest.fixture
def stock() -> SamPredictor:
    """segment_anything's own, on a Sam that this project's loader has only filled."""
    return SamPredictor(load_segmenter(TINY, backbone="tiny").sam)


@pytest.fixture
def ours() -> Predictor:
    return Predictor(TINY, device="cpu")


def same(first: Any, second: Any) -> bool:
    return all(
        a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b) for a, b in zip(first, second, strict=True)
    )


@pytest.fixture(scope="module")
def pairs() -> list[tuple[SamPredictor, Predictor]]:
    """Both, with an image of each shape set; RGB and BGR in turns."""
    made = []
    for number, shape in enumerate(SHAPES):
        pair = SamPredictor(load_segmenter(TINY, backbone="tiny").sam), Predictor(TINY, device="cpu")
        for predictor in pair:
            predictor.set_image(image(shape), ("RGB", "BGR")[number % 2])
        made.append(pair)
    return made


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("kind", list(PROMPTS))
def test_predict_is_sam_predictor_s_bit_for_bit(
    pairs: list[tuple[SamPredictor, Predictor]], kind: str, logits: bool, multimask: bool
) -> None:
    for pair in pairs:
        assert torch.equal(*(predictor.get_image_embedding() for predictor in pair))
        want, found = (
            predictor.predict(**PROMPTS[kind], multimask_output=multimask, return_logits=logits) for predictor in pair
        )
        assert same(want, found)


def test_a_tuned_model_without_a_task_is_its_own_sam(tuned: Path) -> None:
    stock, ours = SamPredictor(load_segmenter(tuned, backbone="tiny").sam), Predictor(tuned)
    for predictor in (stock, ours):
        predictor.set_image(image((90, 128)))
    assert same(stock.predict(**CLICK), ours.predict(**CLICK))
    assert not same(ours.predict(**CLICK), ours.predict(**CLICK, task="part"))


@pytest.mark.parametrize("multimask", [True, False])
def test_torch_calls_are_the_same(stock: SamPredictor, ours: Predictor, multimask: bool) -> None:
    frame = ResizeLongestSide(128).apply_image(image((333, 500)))
    tensor = torch.as_tensor(frame).permute(2, 0, 1).contiguous()[None]
    boxes = ours.transform.apply_boxes_torch(torch.rand(5, 4) * 300, (333, 500))
    points, labels = torch.rand(5, 2, 2) * 80, torch.randint(0, 2, (5, 2))
    feedback = torch.randn(5, 1, 64, 64)
    for predictor in (stock, ours):
        predictor.set_torch_image(tensor, (333, 500))
    for prompt in ((None, None, boxes), (points, labels), (points, labels, boxes, feedback)):
        want, found = (predictor.predict_torch(*prompt, multimask_output=multimask) for predictor in (stock, ours))
        assert same(want, found)
    assert not same(found, ours.predict_torch(*prompt)) if not multimask else True


def test_the_attributes_are_sam_predictor_s(stock: SamPredictor, ours: Predictor) -> None:
    assert isinstance(ours, SamPredictor)
    assert isinstance(ours.model, Sam)
    assert vars(stock).keys() <= vars(ours).keys()
    stock.set_image(image((90, 128)))
    ours.set_image(image((90, 128)))
    assert vars(stock).keys() <= vars(ours).keys()
    for name in ("is_image_set", "original_size", "input_size", "device"):
        assert getattr(stock, name) == getattr(ours, name), name
    ours.reset_image()
    assert not ours.is_image_set
    assert ours.features is None
    with pytest.raises(AttributeError, match="'Predictor' object has no attribute 'maks'"):
        _ = ours.maks


MISUSE: dict[str, Callable[[Any], object]] = {
    "no image": lambda predictor: predictor.predict(**CLICK),
    "no image, torch": lambda predictor: predictor.predict_torch(None, None),
    "no embedding": lambda predictor: predictor.get_image_embedding(),
    "format": lambda predictor: predictor.set_image(image((9, 9)), "HSV"),
    "size": lambda predictor: predictor.set_torch_image(torch.zeros(1, 3, 9, 9), (9, 9)),
    "labels": lambda predictor: (predictor.set_image(image((9, 9))), predictor.predict(CLICK["point_coords"])),
}


@pytest.mark.parametrize("kind", list(MISUSE))
def test_misuse_is_told_in_the_same_words(stock: SamPredictor, ours: Predictor, kind: str) -> None:
    said = []
    for predictor in (stock, ours):
        with pytest.raises((RuntimeError, AssertionError)) as error:
            MISUSE[kind](predictor)
        said.append((error.type, str(error.value)))
    assert said[0] == said[1]


def test_one_image_serves_all_tasks(tuned: Path) -> None:
    """A call's task, the default and a predictor of the task alone agree; a later click asks for none."""
    model = load_segmenter(tuned, backbone="tiny")
    ours = Predictor(tuned)
    ours.set_image(image((90, 128)))
    embedding = ours.features
    first = {}
    for task in TASKS:
        alone = SamPredictor(model.for_task(task))
        alone.set_image(image((90, 128)))
        first[task] = ours.predict(**CLICK, task=task)
        assert same(first[task], alone.predict(**CLICK))
        ours.task = task
        assert same(first[task], ours.predict(**CLICK))
        assert ours.features is embedding
        low = first["unspecified"][2][:1]
        later = ours.predict(**CLICK, mask_input=low, task=task)
        assert same(later, ours.predict(**CLICK, mask_input=low, task="unspecified"))
        boxes = torch.tensor([[3.0, 4.0, 50.0, 60.0]])
        assert same(ours.predict_torch(None, None, boxes), ours.predict_torch(None, None, boxes, task=task))
    assert len({answer[1].tobytes() for answer in first.values()}) == len(TASKS)
    before = ours.model
    with pytest.raises(ConfigError, match=r"unknown 'parts'\. Known: unspecified, salient, entity, part"):
        ours.predict(**CLICK, task="parts")
    with pytest.raises(ConfigError, match="unknown 'parts'"):
        ours.task = "parts"
    with pytest.raises(AssertionError):
        ours.predict(CLICK["point_coords"], task="salient")  # the call failed: what it asked for is gone, too
    assert (ours.model, ours.task) == (before, "part")


@pytest.mark.parametrize("take", [lambda ours: ours, lambda ours: ours.model], ids=["predictor", "model"])
@pytest.mark.parametrize("task", ["unspecified", "entity"])
def test_the_automatic_mask_generator_takes_it(tuned: Path, task: str, take: Callable[[Predictor], Any]) -> None:
    options = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    wanted = SamAutomaticMaskGenerator(load_segmenter(tuned, backbone="tiny").for_task(task), **options)
    found = SamAutomaticMaskGenerator(take(Predictor(tuned, task=task)), **options)
    want, got = (generator.generate(image((90, 128))) for generator in (wanted, found))
    assert len(want) == len(got) > 3
    for a, b in zip(want, got, strict=True):
        assert np.array_equal(a.pop("segmentation"), b.pop("segmentation"))
        assert a == b


def test_images_of_many_sizes_as_one_by_one(tuned: Path) -> None:
    ours = Predictor(tuned, device="cpu")
    images = [image(shape, seed) for seed, shape in enumerate((*SHAPES, (128, 128), (17, 40)))]
    prompts: list[dict[str, Any]] = [
        CLICK,
        {**CLICK, "task": "part"},
        {"box": BOX, "multimask_output": False, "task": "salient"},
        {"box": BOX, "return_logits": True},
        {**CLICK, "mask_input": np.zeros((1, 64, 64), np.float32)},
    ]
    ours.set_image(images[0])
    kept = ours.features
    got = list(ours.predict_images(iter(images), prompts, image_format="BGR"))
    assert ours.features is kept
    alone = Predictor(tuned, device="cpu")
    for picture, prompt, answer in zip(images, prompts, got, strict=True):
        alone.set_image(picture, "BGR")
        assert same(alone.predict(**prompt), answer)
    together = list(ours.predict_images(images, prompts, image_format="BGR", images_per_batch=3))
    for one, many in zip(got, together, strict=True):
        np.testing.assert_allclose(one[2], many[2], atol=1e-3)


def test_images_are_held_a_batch_at_a_time_and_a_missing_prompt_is_told(tuned: Path) -> None:
    ours, taken = Predictor(tuned, device="cpu"), []

    def photos(count: int) -> Any:
        for number in range(count):
            taken.append(number)
            yield image((20, 30), number)

    answers = ours.predict_images(photos(6), [CLICK] * 6, images_per_batch=2)
    next(answers)
    assert taken == [0, 1]
    for images, prompts, said in ((3, 2, "2 prompts for more than 2 images"), (2, 3, "3 prompts for 2 images")):
        with pytest.raises(ConfigError, match=said):
            list(ours.predict_images(photos(images), [CLICK] * prompts))
    with pytest.raises(ConfigError, match="unknown 'HSV'"):
        list(ours.predict_images(photos(1), [CLICK], image_format="HSV"))


NO_IMAGE = {
    "float64 [20, 30, 3]": np.zeros((20, 30, 3)),
    "uint8 [20, 30]": np.zeros((20, 30), dtype=np.uint8),
    "uint8 [20, 30, 4]": np.zeros((20, 30, 4), dtype=np.uint8),
    "uint8 [3, 20, 30]": np.zeros((3, 20, 30), dtype=np.uint8),
    "list": [[1, 2, 3]],
}


@pytest.mark.parametrize("found", list(NO_IMAGE))
def test_what_is_no_image_is_told(ours: Predictor, found: str) -> None:
    calls: list[Callable[[Any], object]] = [
        ours.set_image,
        lambda image: list(ours.predict_images([image], [CLICK])),
    ]
    for call in calls:
        with pytest.raises(DataError, match=re.escape(f"uint8 [H, W, 3], 0 to 255; got {found}. Of a file:")):
            call(NO_IMAGE[found])


def test_what_is_loaded_is_told(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = Predictor(tuned, task="part", device="cpu")
    assert ours.fingerprint == fingerprint(tuned)
    assert ours.weights == tuned
    assert isinstance(ours.segmenter, Segmenter)
    assert repr(ours) == (
        f"<Predictor {tuned} (tiny, task part, learnt tasks: salient, entity, part; cpu), sha256 {ours.fingerprint}>"
    )
    assert capsys.readouterr().err == f"loaded {ours!r}\n"
    Predictor(tuned, quiet=True)
    assert not capsys.readouterr().err


def test_a_task_that_was_not_learnt_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = load_segmenter(TINY, backbone="tiny")
    model.task_prompt.data[TASKS["salient"]] = 0.1
    save_segmenter(tmp_path / "model.safetensors", model, about={})
    predictor = Predictor(tmp_path, task="salient")
    assert "(tiny, task salient, learnt tasks: salient; cpu)" in repr(predictor)
    capsys.readouterr()
    predictor.set_image(image(SHAPES[0]))
    plain, asked = (predictor.predict(**CLICK, task=task) for task in ("unspecified", "part"))
    for ours, theirs in zip(plain, asked, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    told = "task part: this model does not know it (it learnt salient): the answer is that of unspecified\n"
    assert capsys.readouterr().err == told
    assert not np.array_equal(plain[2], predictor.predict(**CLICK)[2])


@pytest.mark.parametrize("device", ["cuda:99", "tpu"])
def test_a_device_that_is_not_there_is_told(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"device: '{device}' is not there; this machine has .*cpu"):
        Predictor(TINY, device=device)


def test_no_stock_weights_stand_in_for_a_wrong_file(tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(TINY.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: truncated"):
        Predictor(cut)
