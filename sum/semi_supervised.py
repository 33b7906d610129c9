"""What methods put beside the one training path: students' views and a teacher, or a further loss (semi-supervised)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sum.contrast import ContrastOptions, KeyBank, PixelContrast
from sum.data.batches import ImageSource
from sum.data.views import StudentViews
from sum.engine import Loop
from sum.errors import ConfigError
from sum.methods import MethodOptions
from sum.models.segmenter import TASKS, Segmenter
from sum.rounds import Rounds
from sum.teacher import Teacher


def sources_of(method: MethodOptions, sources: Sequence[ImageSource]) -> list[ImageSource]:
    """The human images as they are and, where the method has a teacher, students' views of the unlabelled ones."""
    human, *unlabelled = sources
    if method.consistency == "off":
        return [human, *unlabelled]
    return [human, *(StudentViews(source=source) for source in unlabelled)]


def rounds_of(method: MethodOptions, rounds: Rounds, loop: Loop) -> Rounds:
    """The rounds with what the method switches and adds; its state becomes the loop's. Call it before the loop runs.

    Raises ConfigError for a method that cannot train this model.
    """
    rounds = replace(rounds, weigh_points=method.weigh_points, weigh_loss=method.weigh_loss)
    if method.consistency != "off":
        rounds = replace(rounds, views=_views(method, rounds, loop))
    if method.contrast:
        rounds = replace(rounds, terms=(*rounds.terms, _contrast(method, rounds, loop)))
    return rounds


def _views(method: MethodOptions, rounds: Rounds, loop: Loop) -> Rounds:
    """One prompt, best of three, focal and Dice against the teacher's mask; every pixel of the image counts alike."""
    assert isinstance(loop.model, Segmenter)
    if not loop.average:
        raise ConfigError("finetune.method: its teacher is the average of the weights. Set finetune.optim.ema above 0.")
    if rounds.one_shot:
        raise ConfigError(
            "finetune.method: its students answer a box or a point with the best of three outputs; this finetune.arch "
            "is trained by one-shot prompts and has one output. Use another method, or another arch."
        )
    weights = replace(rounds.weights, iou=0.0)
    teacher = Teacher(loop.model, loop.average, weights=weights, autocast=loop.autocast, chunk=loop.chunk)
    return replace(
        rounds,
        count=1,
        box_odds=1.0 if method.consistency == "box" else rounds.box_odds,
        task_prompt="off",
        weigh_points=False,
        weigh_loss=False,
        weights=weights,
        relabel=teacher.relabel,
    )


def _contrast(method: MethodOptions, rounds: Rounds, loop: Loop) -> PixelContrast:
    """The term with a bank of its own, the same in all processes."""
    assert isinstance(loop.model, Segmenter)
    if not any(value.requires_grad for value in loop.model.sam.image_encoder.parameters()):
        raise ConfigError(
            "finetune.method: its contrastive loss is one of the image embedding, and no part of the image encoder "
            "trains. Train the encoder (all of it, or adapters in it), or use another method."
        )
    options = ContrastOptions(weight=method.contrast, theta=rounds.weights.theta)
    channels, device = loop.model.sam.prompt_encoder.embed_dim, loop.accelerator.device
    bank = KeyBank(len(TASKS), size=options.bank, channels=channels, device=device)
    loop.more.update(bank.tensors)
    return PixelContrast(bank, options=options, ranks=loop.ranks, gather=loop.accelerator.gather)
