"""benchmarks/evaluation.py loads peers from checkouts and tells same, tied and other answers apart; tiny peers here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import evaluation
from tests.drawing import grid

SAM2 = '''
import torch
from sam2.utils.misc import FOUND
def sample_one_point_from_error_center(gt_masks, pred_masks):
    """The first wrong pixel."""
    assert gt_masks.dtype == pred_masks.dtype == torch.bool
    y, x = (gt_masks != pred_masks)[0, 0].nonzero()[0]
    return torch.tensor([[[x, y]]]).float(), gt_masks[0, 0, y, x].int().reshape(1, 1)
'''
BOUNDARY = '''
def mask_to_boundary(mask):
    """All of it."""
    assert mask.dtype == "uint8"
    return mask
'''


@pytest.fixture
def checkouts(tmp_path: Path) -> Iterator[Path]:
    files = {
        "sam2/__init__.py": "raise ImportError('sets Hydra up')",
        "sam2/utils/misc.py": "FOUND = True",
        "sam2/modeling/sam2_utils.py": SAM2,
        "boundary_iou/utils/boundary_utils.py": BOUNDARY,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "sam2"]:
        del sys.modules[name]


def run(monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    monkeypatch.setattr(evaluation, "CLICK_SIDES", (16,))
    monkeypatch.setattr(evaluation, "BOUNDARY_SIZES", ((16, 24),))
    monkeypatch.setattr(sys, "argv", ["evaluation.py", "--repeats", "1", "--masks", "5", *map(str, options)])
    evaluation.main()


@pytest.mark.slow
def test_rows_need_their_checkout(monkeypatch, capsys, checkouts):
    run(monkeypatch)
    assert "clicks are skipped" in (told := capsys.readouterr().out)
    assert "boundary IoU are skipped" in told
    run(monkeypatch, "--sam2", checkouts, "--boundary", checkouts, "--rows", "boundary")
    told = capsys.readouterr().out
    assert "skipped" not in told
    assert told.count("boundary IoU") == 5
    assert "click" not in told
    with pytest.raises(SystemExit, match=r"--sam2: .* is missing"):
        run(monkeypatch, "--sam2", checkouts / "elsewhere")


def test_peers_are_called_as_they_want_it(checkouts):
    click = evaluation.evaluation_peers.sam2_click(checkouts)
    assert click(grid("... ..."), grid("... .#.")) == (1, 1, 1)
    assert click(grid("... ..#"), grid("... ...")) == (2, 1, 0)
    measure = evaluation.evaluation_peers.boundary_iou(checkouts)
    assert measure(grid("##. ..."), grid("#.. ...")) == 0.5
    assert measure(grid("... ..."), grid("... ...")) == 1


def test_a_tie_is_told_from_another_click():
    pairs = [(grid("..... ....."), grid("##.## ##.##")), (grid("..... ..... ....."), grid("###.. ###.. ###.#"))]
    theirs, ours = [(0, 0, 1), (4, 2, 1)], [(3, 0, 1), (1, 1, 1)]
    assert evaluation.told_click(pairs, [theirs, ours]) == "0 of 2 same, 1 tied, 1 other"
    assert evaluation.told_click(pairs, [ours, ours]) == "2 of 2 same, 0 tied, 0 other"
    assert evaluation.told_boundary([], [[0.5, 0.25], [0.5, 0.5]]) == "2e-01 apart"


def test_masks_are_what_the_rows_say():
    blobs = evaluation.blobs((256, 384), 6)
    areas = [target.mean() for _, target in blobs]
    assert areas == sorted(areas)
    assert all(target.any() and not np.array_equal(prediction, target) for prediction, target in blobs)
    for prediction, target in evaluation.spanning((64, 96), 2):
        assert 0.4 < target.mean() < 0.6
        assert target.any(axis=0).mean() > 0.7
        assert 0 < (prediction ^ target).mean() < 0.1
    ((prediction, target),) = evaluation.specked(evaluation.spanning((200, 200), 1))
    assert np.mean(prediction ^ target) == pytest.approx(0.1, abs=0.01)
