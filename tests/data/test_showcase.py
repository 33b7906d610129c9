"""Which masks are shown, and that the small pictures show them in the right place and colour."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
import pytest

from sum.data.charts import curves
from sum.data.pictures import (
    ADDED,
    LEAST,
    LONGEST,
    MENDED,
    MISSED,
    RIGHT,
    SPOILT,
    Window,
    changed,
    clicked,
    compared,
    heat,
    prompted,
    strip,
    to_jpeg,
)
from sum.data.showcase import _most_changed, _to_image, choose_masks

PNG = b"\x89PNG\r\n"


def table(changes: dict[str, tuple[float, float]], task: str = "part") -> pd.DataFrame:
    rows = {
        name: {"task": task, "base": 0.5, "small": 0.5 + small, "large": 0.5 + large}
        for name, (small, large) in changes.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def test_gains_losses_and_lot() -> None:
    found = choose_masks(
        table(
            {"a": (0.3, 0.0), "b": (0.1, 0.2), "c": (-0.4, 0.1), "d": (-0.1, -0.2), "e": (0.0, 0.0), "f": (0.0, 0.0)}
        ),
        count=6,
    )
    kinds = {kind: [name for _, own, name in found if own == kind] for kind in ("better", "worse", "random")}
    assert kinds["better"] == ["a", "b"]
    assert kinds["worse"] == ["c", "d"]
    assert sorted(kinds["random"]) == ["e", "f"]


def test_no_loss_is_called_a_gain() -> None:
    found = choose_masks(table({"a": (-0.3, -0.1), "b": (-0.2, -0.1)}), count=3)
    assert [(kind, name) for _, kind, name in found] == [("worse", "a"), ("random", "b")]
    found = choose_masks(table({"a": (0.3, -0.3)}), count=3)
    assert [(kind, name) for _, kind, name in found] == [("better", "a")]


def test_the_lot_does_not_depend_on_the_models() -> None:
    names = [f"mask {number}" for number in range(50)]
    one, other = (choose_masks(table(dict.fromkeys(names, (gain, gain))), count=12) for gain in (0.0, 0.0))
    assert one == other
    assert {kind for _, kind, _ in one} == {"random"}


def test_every_task_gets_its_share_in_the_order_of_the_paper() -> None:
    both = pd.concat([table({"a": (0.1, 0.1)}), table({"z": (0.1, 0.1)}, task="salient")])
    assert [(task, name) for task, _, name in choose_masks(both, count=3)] == [("salient", "z"), ("part", "a")]


@pytest.mark.parametrize(
    ("box", "hw", "want"),
    [
        ((50, 50, 149, 149), (300, 300), (15, 185, 15, 185)),  # 100 px and 35 % on each side
        ((10, 10, 12, 12), (300, 300), (0, LEAST, 0, LEAST)),  # at least 40 px, moved inside
        ((295, 100, 299, 104), (300, 300), (82, 122, 260, 300)),  # at the right border
        ((0, 0, 99, 19), (20, 100), (0, 20, 0, 100)),  # no more than there is
    ],
)
def test_window(box: tuple[int, int, int, int], hw: tuple[int, int], want: tuple[int, int, int, int]) -> None:
    window = Window.around(box, hw=hw)
    assert (window.y0, window.y1, window.x0, window.x1) == want
    assert max(window.photo(np.zeros((*hw, 3), np.uint8)).shape) == LONGEST


def test_colours_tell_right_missed_and_added() -> None:
    image = np.zeros((LONGEST, LONGEST, 3), np.uint8)
    truth, prediction = np.zeros((2, LONGEST, LONGEST), dtype=bool)
    truth[:, :100], prediction[:, 50:150] = True, True
    picture = compared(Window(0, LONGEST, 0, LONGEST), image, prediction=prediction, truth=truth).astype(int)
    for x, colour in ((25, MISSED), (75, RIGHT), (125, ADDED)):
        ours = np.abs(picture[80, x] - np.array(colour)).sum()
        assert ours == min(np.abs(picture[80, x] - np.array(other)).sum() for other in (RIGHT, MISSED, ADDED))
    assert len(set(picture[80, 160])) == 1


def test_the_difference_shows_who_is_right() -> None:
    """Columns 0..39 only the first model is right, 40..79 both, 80..119 only the second, the rest neither."""
    image = np.zeros((LONGEST, LONGEST, 3), np.uint8)
    truth, before, after = np.zeros((3, LONGEST, LONGEST), dtype=bool)
    truth[:, :120], before[:, :80], after[:, 40:] = True, True, True
    before[:, 120:] = True
    window = Window(0, LONGEST, 0, LONGEST)
    picture = changed(window, image, before=before, after=after, truth=truth).astype(int)
    for x, colour in ((20, SPOILT), (100, MENDED)):
        assert np.abs(picture[80, x] - np.array(colour)).sum() < 150
    for x in (60, 150):
        assert len(set(picture[80, x])) == 1


def test_clicks_are_dots_that_tell_on_from_off() -> None:
    window = Window(0, LONGEST, 0, LONGEST)
    grey = np.full((LONGEST, LONGEST, 3), 128, np.uint8)
    picture = clicked(window, grey, [(30, 40, 1), (120, 90, 0)])
    assert picture[40, 30].tolist() == [0, 0, 0]
    assert picture[90, 120].tolist() == [255, 255, 255]
    assert picture[37, 30].min() > 200
    assert picture[87, 120].max() < 60
    assert (clicked(window, grey, []) == grey).all()


@pytest.mark.parametrize(("kind", "want"), [("better", "small"), ("worse", "large"), ("random", "large")])
def test_the_difference_is_of_the_model_that_a_mask_is_shown_for(kind: str, want: str) -> None:
    assert _most_changed(kind, {"base": 0.5, "small": 0.6, "medium": 0.5, "large": 0.3}) == want
    assert _most_changed(kind, {"base": 0.5}) == "base"


def test_the_click_is_where_it_was_made() -> None:
    image = np.full((200, 300, 3), 200, np.uint8)
    window = Window.around((100, 50, 140, 90), hw=(200, 300))
    picture = prompted(window, image, click=(120, 70), box=(100, 50, 140, 90))
    y, x = np.argwhere(picture.sum(axis=2) == 0).mean(axis=0)
    assert x / window.zoom + window.x0 == pytest.approx(120.5, abs=0.6)
    assert y / window.zoom + window.y0 == pytest.approx(70.5, abs=0.6)
    assert (prompted(window, image, click=None, box=(100, 50, 140, 90)) != 200).any()


def test_uncertainty_lies_over_the_image_it_is_of() -> None:
    codes = np.zeros((64, 64), np.uint8)
    codes[8:16, 32:48] = 255  # model frame of 128: rows 16..32, columns 64..96
    values = _to_image(cv2.imencode(".png", codes)[1].tobytes(), hw=(120, 240), side=128)
    assert values.shape == (120, 240)  # the frame holds 64 x 128 of it
    y, x = np.argwhere(values > 0.5).mean(axis=0)
    assert (x, y) == pytest.approx((149.5, 44.5), abs=1.5)
    picture = heat(Window(0, 120, 0, 240), np.zeros((120, 240, 3), np.uint8), values=values)
    assert picture[:5].sum() < picture[30:40].sum()


def test_strip_and_jpeg() -> None:
    low, high = np.zeros((10, 20, 3), np.uint8), np.zeros((30, 20, 3), np.uint8)
    assert strip([low, high]).shape == (30, 48, 3)
    data = to_jpeg(np.full((16, 16, 3), (200, 10, 10), np.uint8))
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(back.astype(int) - (200, 10, 10)).max() < 8


def test_curves_are_a_png() -> None:
    rows = [
        {
            "model": model,
            "scope": scope,
            "name": name,
            "metric": metric,
            "round": number,
            "mean": 0.5,
            "low": 0.4,
            "high": 0.6,
        }
        for model in ("base", "small")
        for scope, name in (("task", "part"), ("overall", "all"))
        for metric in ("iou", "boundary_iou")
        for number in (1, 2)
    ]
    first = curves(pd.DataFrame(rows))
    assert first.startswith(PNG)
    assert curves(pd.DataFrame(rows)) == first
