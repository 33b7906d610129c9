"""Figures of the base weights on held-out demo scenes, for their model card: python benchmarks/base_weights.py [SCENES]

Oracle 1-point mIoU a task (the best of three outputs; the point farthest from the boundary) and automatic mask
generation with the thresholds of params.yaml: masks a scene, the share that matches a true entity or part with
IoU >= 0.7, and the share of entities and parts that are found so. The scenes are the demo's validation scenes: neither
pre-training nor the benchmark sees them.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from sum.config import load_config
from sum.core.clicks import farthest_point
from sum.core.geometry import logits_to_image
from sum.core.metrics import iou
from sum.data.demo import Scene
from sum.data.demo_files import set_scene
from sum.data.records import decode_mask
from sum.models.checkpoint import load_segmenter
from sum.models.generator import generate
from sum.models.segmenter import Prompts, Segmenter
from sum.models.sieve import GeneratorSettings


def truths(scene: Scene) -> Iterator[tuple[str, np.ndarray]]:
    """Task and mask of everything in a scene."""
    yield "salient", scene.salient
    yield from (("entity", mask) for mask in scene.entities)
    yield from (("part", mask) for mask in scene.parts)


@torch.inference_mode()
def one_point(model: Segmenter, scene: Scene) -> list[tuple[str, float, float]]:
    """Task, oracle IoU and the IoU of the model's own choice, of every mask of a scene."""
    named = list(truths(scene))
    frame = torch.from_numpy(scene.image).permute(2, 0, 1).contiguous()[None]
    side = scene.image.shape[0]
    embedding = model.encode(frame, torch.tensor([[side, side]]))
    points = torch.tensor([farthest_point(mask) for _, mask in named], dtype=torch.float32)[:, None]
    prompts = Prompts.from_points(points, torch.ones(len(named), 1, dtype=torch.int64))
    answer = model.decode(embedding, torch.zeros(len(named), dtype=torch.int64), prompts, multimask=True)
    rows = []
    for k, (task, mask) in enumerate(named):
        planes = logits_to_image(answer.logits[k][:, None], resized=(side, side), hw=(side, side), side=model.side)
        found = [iou((plane[0] > 0).numpy(), mask) for plane in planes]
        rows.append((task, max(found), found[int(answer.iou[k].argmax())]))
    return rows


def main() -> None:
    """Print the figures."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    config = load_config(sys.argv[2:])
    model = load_segmenter(Path(config.model.checkpoint), backbone="tiny")
    settings = GeneratorSettings(**{f.name: getattr(config.pseudo_label, f.name) for f in fields(GeneratorSettings)})
    rows, yields, matched, total = [], [], 0, 0
    recall: dict[str, list[bool]] = {"entity": [], "part": []}
    for index in range(count):
        scene = set_scene("entity_val", index, seeds=config.demo.seeds, side=config.demo.side)
        rows += one_point(model, scene)
        masks = generate(model, scene.image, settings=settings)
        yields.append(len(masks))
        height, width = scene.image.shape[:2]
        found = [decode_mask(mask.rle, height=height, width=width) for mask in masks]
        targets = [(task, mask) for task, mask in truths(scene) if task != "salient"]
        agree = np.array([[iou(one, mask) >= 0.7 for _, mask in targets] for one in found]).reshape(-1, len(targets))
        matched += int(agree.any(1).sum())
        total += len(found)
        for (task, _), hit in zip(targets, agree.any(0), strict=True):
            recall[task].append(bool(hit))
    for task in ("salient", "entity", "part"):
        oracle = statistics.mean(o for t, o, _ in rows if t == task)
        own = statistics.mean(c for t, _, c in rows if t == task)
        print(f"{task:8} 1 point: oracle mIoU {100 * oracle:.1f}, the model's own choice {100 * own:.1f}")
    share = 100 * matched / max(total, 1)
    hits = ", ".join(f"{100 * statistics.mean(hit):.1f} % of {len(hit)} {task} masks" for task, hit in recall.items())
    print(f"automatic masks: median {statistics.median(yields)} a scene, {total} in all, {share:.1f} % match")
    print(f"found: {hits}")


if __name__ == "__main__":
    main()
