"""Random changes of an image's intensities, as AugSeg makes them (Zhao et al., CVPR 2023, 3.2): geometry stays.

Of a pool of eleven a random number is drawn, with repetition, each at a strength drawn evenly from a range. The pool
and its ranges are those of the authors' code; the strength of an operation is a number in [0, 1) here, 0 its mildest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import Tensor

MOST = 3  # operations in a row; AugSeg's default
Change = Callable[[Image.Image, float], Image.Image]


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Change:
    """An enhancement whose factor falls from 0.95 to 0.05: AugSeg only ever takes away."""
    return lambda image, strength: kind(image).enhance(0.95 - 0.9 * strength)


def _turned(image: Image.Image, strength: float) -> Image.Image:
    """The hue turned by up to half of the circle, either way."""
    hue, saturation, value = image.convert("HSV").split()
    table = [(place + round(255 * (strength - 0.5))) % 256 for place in range(256)]
    return Image.merge("HSV", (hue.point(table), saturation, value)).convert("RGB")


POOL: Mapping[str, Change] = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "blur": lambda image, strength: image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * strength)),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "colour": _enhanced(ImageEnhance.Color),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "posterize": lambda image, strength: ImageOps.posterize(image, 7 - int(4 * strength)),  # 7 to 4 bits
    "solarize": lambda image, strength: ImageOps.solarize(image, 255 - int(255 * strength)),  # from 255 down to 1
    "hue": _turned,
}


def changed(image: Tensor, hw: tuple[int, int], *, rng: np.random.Generator) -> Tensor:
    """A frame `[3, S, S]` uint8 with one to MOST random changes of the part of hw that is image; padding stays.

    Every number that decides is drawn from `rng`.
    """
    height, width = hw
    pixels = Image.fromarray(np.ascontiguousarray(image[:, :height, :width].permute(1, 2, 0).numpy()))
    names = list(POOL)
    for number in rng.integers(len(names), size=1 + int(rng.integers(MOST))).tolist():
        pixels = POOL[names[number]](pixels, rng.random())
    out = image.clone()
    out[:, :height, :width] = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    return out
