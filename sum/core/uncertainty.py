"""How far a pseudo-label can be trusted at each pixel: u, 0 certain .. 1 uncertain; certainty is 1 - u.

A method takes SAM's logits, the refined logits and, where OTHERS says so, those of another refiner, all of one shape,
and returns u of that shape, float32. A new method is a function and an entry of UNCERTAINTY. Source: Liu et al.,
NeurIPS 2024, section 3.2.3, Table 4 and Appendix E.1.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class UncertaintyMethod(Protocol):
    """A row of UNCERTAINTY."""

    def __call__(self, sam_logits: Tensor, refined_logits: Tensor, other_logits: Tensor | None = None) -> Tensor:
        """u of logits of one shape; other_logits: of the refiner that OTHERS names, for the methods that it has."""


def refinement(sam_logits: Tensor, refined_logits: Tensor, other_logits: Tensor | None = None) -> Tensor:
    """The method of the paper: how far refinement moved the probability, `|sigmoid(s) - sigmoid(r)|`."""
    return (torch.sigmoid(sam_logits.float()) - torch.sigmoid(refined_logits.float())).abs()


def confidence(sam_logits: Tensor, refined_logits: Tensor, other_logits: Tensor | None = None) -> Tensor:
    """SAM's own doubt, `1 - |2p - 1|`: 1 at p = 0.5, 0 at p = 0 or 1. The refined logits are not looked at."""
    return 2 * torch.sigmoid(-sam_logits.float().abs())


def none(sam_logits: Tensor, refined_logits: Tensor, other_logits: Tensor | None = None) -> Tensor:
    """No doubt anywhere: pseudo-labels are trained on as if they were human masks (Vanilla)."""
    return torch.zeros_like(sam_logits, dtype=torch.float32)


def discrepancy(sam_logits: Tensor, refined_logits: Tensor, other_logits: Tensor | None = None) -> Tensor:
    """How far two refiners disagree, `|sigmoid(r) - sigmoid(o)|`; SAM's logits are not looked at.

    Raises ValueError without the other's logits: refinement would look like an answer.
    """
    if other_logits is None:
        raise ValueError("discrepancy compares two refiners: it wants other_logits, of the refiner that OTHERS names")
    return refinement(other_logits, refined_logits)


UNCERTAINTY: dict[str, UncertaintyMethod] = {
    "refinement": refinement,
    "confidence": confidence,
    "discrepancy_teacher": discrepancy,
    "discrepancy_decoders": discrepancy,
    "none": none,
}
OTHERS: dict[str, str] = {  # method -> the refiner it compares with the one of data/refiner/model.safetensors
    "discrepancy_teacher": "student",  # the weights after the last step, beside their running average (the teacher)
    "discrepancy_decoders": "decoder",  # trained from the same SAM, the masks in another order and under other clicks
}
OF_SAM_ALONE = frozenset({"none", "confidence"})  # do not look at the refined logits


def map_codes(method: UncertaintyMethod, sam: Tensor, refined: Tensor, other: Tensor | None = None) -> Tensor:
    """u of stored probabilities, as it is stored: uint8 codes of one shape -> uint8.

    Of `refinement` the distance of the codes themselves: the store derives it from them.
    """
    if method is refinement:
        return (sam.short() - refined.short()).abs().to(torch.uint8)
    return to_codes(method(logits_of(sam), logits_of(refined), None if other is None else logits_of(other)))


def to_codes(values: Tensor) -> Tensor:
    """Probabilities or uncertainties, 0..1, to one byte a pixel, rounded to the nearest. Any shape -> uint8."""
    return (values.float() * 255).round().clamp(0, 255).to(torch.uint8)


def from_codes(codes: Tensor) -> Tensor:
    """The inverse of `to_codes`, within 1/510. uint8 of any shape -> float32, 0..1."""
    return codes.float() / 255


def logits_of(codes: Tensor) -> Tensor:
    """Logits of stored probabilities: what the refinement module is asked with, in training and in labelling.

    uint8 of any shape -> float32. Codes 0 and 255 stand for all that round to them; they become the logits of 1/1020
    and 1019/1020, about -6.9 and 6.9.
    """
    return torch.logit(from_codes(codes), eps=0.25 / 255)
