"""A tuned model where SAM is used: segment_anything's SamPredictor, with tasks and with several images at a time."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import Sam
from torch import Tensor

from sum.errors import ConfigError, DataError
from sum.models.hq import HqSegmenter
from sum.models.segmenter import Segmenter, unlearnt
from sum.named_weights import CACHE, URI, load

PARTS = (
    "image_encoder", "prompt_encoder", "mask_decoder", "preprocess", "postprocess_masks", "mask_threshold",
    "image_format",
)  # fmt: skip  # of a Sam: what SamAutomaticMaskGenerator and SamPredictor ask a model for
TOGETHER = 4  # images encoded in one call, where the device gains by it
Answer = tuple[np.ndarray, np.ndarray, np.ndarray]


class Predictor(SamPredictor):  # type: ignore[misc]  # segment_anything has no types
    """segment_anything's SamPredictor of weights that a word names, to be asked for masks of a task.

    Every method, attribute and return value is SamPredictor's; with task `unspecified` every bit is. `fingerprint` is
    the sha256 of the file that was loaded (`weights`), `segmenter` the model. A task acts on calls without
    `mask_input`, as in training; the image embedding is the same for all tasks, so one `set_image` serves them all.
    """

    def __init__(
        self,
        weights: str | Path,
        *,
        task: str = "unspecified",
        device: str = "auto",
        base: str | Path | None = None,
        uri: str = URI,
        cache: Path = CACHE,
        quiet: bool = False,
        hq_token_only: bool | None = None,
    ) -> None:
        """weights, base, uri, cache: as sum.named_weights.load; task: of calls that name none; device: auto, cpu,
        cuda, cuda:1, mps; quiet: do not print what was loaded, with its fingerprint, to stderr; hq_token_only: of an
        HQ-SAM model, the head's logits alone (True) or SAM's + the head's (False); None: as it was published.

        Raises CheckpointError when the weights are missing, cut or foreign (never are others taken instead),
        TrackingError when MLflow does not give them, ConfigError for an unknown task or device.
        """
        loaded = load(weights, base=base, uri=uri, cache=cache)
        self.segmenter = loaded.model.to(_device(device))
        self.weights, self.fingerprint = loaded.weights, loaded.fingerprint
        if hq_token_only is not None:
            _set_head(self.segmenter, alone=hq_token_only)
        self._asked: dict[str, Sam] = {}
        self._task, self._quiet = task, quiet
        super().__init__(self.for_task(task))
        self._tell(f"loaded {self!r}")

    def _tell(self, text: str) -> None:
        """Not by logging, which a notebook does not show."""
        if not self._quiet:
            print(text, file=sys.stderr)  # noqa: T201

    def __repr__(self) -> str:
        tasks = ", ".join(self.segmenter.learnt_tasks) or "none"
        what = f"{self.segmenter.backbone}, task {self._task}, learnt tasks: {tasks}; {self.device}"
        return f"<Predictor {self.weights} ({what}), sha256 {self.fingerprint}>"

    def __getattr__(self, name: str) -> Any:
        """A Sam's parts, so that this is taken for a model: `SamAutomaticMaskGenerator(predictor)`."""
        if name in PARTS:
            return getattr(self.model, name)
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    @property
    def task(self) -> str:
        """What calls without `task=` ask for; to set it keeps the image."""
        return self._task

    @task.setter
    def task(self, task: str) -> None:
        self.model = self.for_task(task)
        self._task = task

    def for_task(self, task: str) -> Sam:
        """A Sam that asks for one task, for anything that takes a Sam; `model` is that of the default task.

        Weights are shared, not copied. Raises ConfigError for an unknown task.
        """
        sam = self._asked.get(task)
        device = next(self.segmenter.sam.image_encoder.parameters()).device
        if sam is None or sam.prompt_encoder.no_mask_embed.weight.device != device:  # a user has moved the model
            sam = self._asked[task] = self.segmenter.for_task(task)
            if told := unlearnt(self.segmenter, task):
                self._tell(told)
        return sam

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """As SamPredictor.set_image: an image `[H, W, 3]` uint8 in RGB or BGR.

        Raises DataError for anything else: as floats or as one channel it would be answered, but as another image.
        """
        require_image(image)
        super().set_image(image, image_format)

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        task: str | None = None,
    ) -> Answer:
        """As SamPredictor.predict: points `[N, 2]` (x, y) and a box `[4]` in pixels of the image -> masks `[M, H, W]`,
        scores `[M]`, low-resolution logits `[M, L, L]` for `mask_input` of the next call.

        task: this call's, else the default. It acts where `mask_input` is None.
        """
        with self._asking(task):
            found: Answer = super().predict(
                point_coords, point_labels, box, mask_input, multimask_output, return_logits=return_logits
            )
        return found

    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        *,
        task: str | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As SamPredictor.predict_torch, in the model frame: points `[B, N, 2]`, boxes `[B, 4]` -> masks
        `[B, M, H, W]`, scores `[B, M]`, logits `[B, M, L, L]`. task: as `predict`.
        """
        with self._asking(task):
            found: tuple[Tensor, Tensor, Tensor] = super().predict_torch(
                point_coords, point_labels, boxes, mask_input, multimask_output, return_logits=return_logits
            )
        return found

    def predict_images(
        self,
        images: Iterable[np.ndarray],
        prompts: Sequence[Mapping[str, Any]],
        *,
        image_format: str = "RGB",
        images_per_batch: int | None = None,
    ) -> Iterator[Answer]:
        """Answer a prompt on each of many images `[H, W, 3]` uint8 of any sizes; yields masks, scores and logits in
        order, each as `predict`. The image set before stays set.

        prompts: one an image, the keywords of `predict`, `task` too. images_per_batch: how many are encoded in one
        call, and held at a time; on a CPU one, which is as fast and gives the bits of one-by-one calls, elsewhere 4.
        Raises ConfigError when there are not as many prompts as images, DataError as `set_image`.
        """
        count = images_per_batch or (1 if self.device.type == "cpu" else TOGETHER)
        own = copy.copy(self)  # shares the model, not the image
        asked = iter(prompts)
        rest, done = iter(images), 0
        while part := list(itertools.islice(rest, count)):
            wanted = list(itertools.islice(asked, len(part)))
            if len(wanted) < len(part):
                raise ConfigError(f"predict_images: {len(prompts)} prompts for more than {done + len(wanted)} images")
            for features, frame, image, prompt in zip(*own._encode(part, image_format), part, wanted, strict=True):
                own.features, own.input_size, own.original_size = features[None], frame, image.shape[:2]
                own.is_image_set = True
                yield own.predict(**prompt)
            done += len(part)
        if done < len(prompts):
            raise ConfigError(f"predict_images: {len(prompts)} prompts for {done} images")

    @torch.no_grad()
    def _encode(self, images: Sequence[np.ndarray], image_format: str) -> tuple[Tensor, list[tuple[int, ...]]]:
        """Embeddings `[B, C, h, w]` of images and the size of each in the model frame."""
        inputs, sizes = [], []
        for image in images:
            require_image(image)
            if image_format not in ("RGB", "BGR"):
                raise ConfigError(f"image_format: unknown '{image_format}'. Known: RGB, BGR.")
            right = image if image_format == self.model.image_format else image[..., ::-1]
            resized = torch.as_tensor(self.transform.apply_image(right), device=self.device)
            frame = resized.permute(2, 0, 1).contiguous()[None]
            sizes.append(tuple(frame.shape[-2:]))
            inputs.append(self.model.preprocess(frame))
        return self.model.image_encoder(torch.cat(inputs)), sizes

    @contextmanager
    def _asking(self, task: str | None) -> Iterator[None]:
        """The model of a task while a call lasts; None: that which is there."""
        before = self.model
        if task is not None:
            self.model = self.for_task(task)
        try:
            yield
        finally:
            self.model = before


def require_image(image: object) -> None:
    """Raises DataError for what is no image `[H, W, 3]` uint8."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return
    found = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
    raise DataError(
        f"an image wants to be uint8 [H, W, 3], 0 to 255; got {found}. Of a file: "
        "numpy.asarray(PIL.Image.open(path).convert('RGB'))"
    )


def _set_head(model: Segmenter, *, alone: bool) -> None:
    """Whether an HQ-SAM model answers its head's logits alone. Raises ConfigError for another model."""
    if not isinstance(model, HqSegmenter):
        raise ConfigError("hq_token_only: this model has no head of HQ-SAM. Leave it out")
    model.hq_only = alone


def _device(name: str) -> torch.device:
    """The device of a name, for `auto` the best that is there. Raises ConfigError when it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    known = [kind for kind, found in there.items() if found]
    if name == "auto":
        return torch.device(known[0])
    kind, _, number = name.partition(":")
    if kind not in known or (kind == "cuda" and number and int(number) >= torch.cuda.device_count()):
        raise ConfigError(
            f"device: '{name}' is not there; this machine has {', '.join(known)}. Use auto or one of them."
        )
    return torch.device(name)
