"""Masks drawn in text, so that a test case fits on one line."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def grid(picture: str) -> np.ndarray:
    """Draw one mask: `grid("##. #..")` is a bool array `[2, 3]`; rows are separated by blanks."""
    return np.array([[sign == "#" for sign in row] for row in picture.split()])


def draw(*pictures: str) -> Tensor:
    """Draw a batch of masks: `draw("##. #..")` is a float tensor `[1, 1, 2, 3]` of 0 and 1."""
    return torch.stack([torch.from_numpy(grid(picture)).float()[None] for picture in pictures])
