"""Paired tables against sums by hand, all sign flips, and the rate of false alarms."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from sum.data.paired import COLUMNS, Tables, compare, paired, sign_flips
from sum.data.scores import KEY
from sum.errors import DataError

Sets = dict[tuple[str, str], list[list[float]]]  # (set, task) -> one list of values an image
BASE: Sets = {("a", "part"): [[0.9, 0.5, 0.7], [0.1]], ("b", "part"): [[0.2]], ("c", "salient"): [[0.5], [0.7, 0.3]]}
GAMES = {"point": 0.0, "box": 0.1}


def places(values: Sets = BASE) -> list[tuple[dict[str, str], float]]:
    found = []
    for (dataset, task), images in values.items():
        for image, masks in enumerate(images):
            for mask, value in enumerate(masks):
                image_id = f"{dataset}/{image}"
                place = {"dataset": dataset, "task": task, "image_id": image_id, "mask_id": f"{image_id}#{mask}"}
                found.append((place, value))
    return found


def rows(values: Sets = BASE, *, shift: float = 0.0, by_round: float = 0.02) -> pd.DataFrame:
    """Games point, box (0.1 better) and everything (0.05 worse), rounds 1 to 5, `by_round` better with each."""
    found = []
    for place, value in places(values):
        for prompt, bonus in {**GAMES, "everything": -0.05}.items():
            for number in range(1, 2 if prompt == "everything" else 6):
                for output in ("oracle", "single") if prompt != "everything" else ("oracle",):
                    iou = value + shift + bonus + by_round * (number - 1) - 0.3 * (output == "single")
                    task_prompt = "unspecified" if prompt == "everything" else place["task"]
                    row = {"prompt": prompt, "task_prompt": task_prompt, "round": number, "output": output, "iou": iou}
                    found.append({**place, **row, "boundary_iou": iou / 2})
        plain = {"prompt": "point", "task_prompt": "unspecified", "output": "oracle", "iou": 0.0, "boundary_iou": 0.0}
        found += [{**place, **plain, "round": number} for number in range(1, 6)]
    return pd.DataFrame(found)


def checks(passed: dict[str, list[bool]], values: Sets = BASE) -> pd.DataFrame:
    """check -> whether the masks passed, in the order of `places`."""
    return pd.DataFrame(
        [
            {**place, "check": check, "passed": one}
            for check, answers in passed.items()
            for (place, _), one in zip(places(values), answers, strict=False)
        ]
    )


def generated(counts: dict[str, int]) -> pd.DataFrame:
    """Image -> how many masks."""
    tasks = dict(tuple(BASE))
    return pd.DataFrame(
        [
            {"dataset": image[0], "task": tasks[image[0]], "image_id": image, "generated": count}
            for image, count in counts.items()
        ]
    )


def table(one: Tables, other: Tables, **options: object) -> pd.DataFrame:
    settings = {"prompts": ["point", "box"], "rounds": [1, 3, 5], "resamples": 50} | options
    return paired(one, other, **settings)  # type: ignore[arg-type]


def cell(found: pd.DataFrame, family: str, kind: str, name: str) -> pd.Series:
    chosen = found[(found["family"] == family) & (found["kind"] == kind) & (found["name"] == name)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_every_kind_at_every_scope_once():
    found = table(Tables(rows()), Tables(rows(shift=0.1)))
    assert list(found.columns) == list(COLUMNS)
    assert found[["family", "kind"]].drop_duplicates().to_numpy().tolist() == [
        ["gain", "1, 3, 5 points"],
        ["point", "1 point"],
        ["point", "3, 5 points"],
        ["box", "box"],
        ["box", "box + 2, 4 points"],
        ["everything", "everything"],
    ]
    assert len(found) == 6 * (1 + 2 + 3)
    assert not found.duplicated(["family", "kind", "scope", "name"]).any()


@pytest.mark.parametrize("metric", ["iou", "boundary_iou"])
def test_means_are_over_rounds_then_masks_then_sets(metric):
    found = table(Tables(rows()), Tables(rows(shift=0.1, by_round=0.03)), metric=metric)
    scale = 1.0 if metric == "iou" else 0.5
    a, b, c = (0.9 + 0.5 + 0.7 + 0.1) / 4, 0.2, 0.5
    for family, kind, name, base, gain in (
        ("gain", "1, 3, 5 points", "all", (a + b + c) / 3 + 0.04, 0.1 + 0.02),
        ("gain", "1, 3, 5 points", "part", (a + b) / 2 + 0.04, 0.1 + 0.02),
        ("point", "1 point", "salient", c, 0.1),
        ("point", "3, 5 points", "a", a + 0.06, 0.1 + 0.03),
        ("box", "box", "part", (a + b) / 2 + 0.1, 0.1),
        ("box", "box + 2, 4 points", "b", b + 0.1 + 0.06, 0.1 + 0.03),
        ("everything", "everything", "all", (a + b + c) / 3 - 0.05, 0.1),
    ):
        row = cell(found, family, kind, name)
        assert row["base"] == pytest.approx(scale * base)
        assert row["gain"] == pytest.approx(scale * gain)
        assert row["tuned"] == pytest.approx(scale * (base + gain))
        assert row["low"] == pytest.approx(row["gain"])  # all masks gain alike
        assert row["high"] == pytest.approx(row["gain"])
    assert cell(found, "box", "box", "part")[["masks", "images"]].tolist() == [5, 3]


def test_checks_are_compared_where_both_were_asked():
    """After `negative` was not asked of a mask of one model, that mask is left out of both."""
    one = checks({"background": [True] * 8, "negative": [True, True, True, True, True, True, True, False]})
    other = checks({"background": [True] * 7 + [False], "negative": [False, True, True, True]})
    found = table(Tables(rows(), one), Tables(rows(), other))
    background = cell(found, "fidelity", "background", "all")
    assert background["base"] == pytest.approx(1.0)
    assert background["gain"] == pytest.approx(-(1 / 3) / 3)  # one of three masks in one of three sets
    negative = cell(found, "fidelity", "negative", "all")
    assert negative["masks"] == 4
    assert negative["base"] == pytest.approx(1.0)
    assert negative["gain"] == pytest.approx(-1 / 4)


def test_a_check_that_no_mask_has_in_common_is_no_row():
    first, last = checks({"negative": [True] * 8}).iloc[:3], checks({"negative": [True] * 8}).iloc[5:]
    found = table(Tables(rows(), first), Tables(rows(), last))
    assert "fidelity" not in set(found["family"])


@pytest.mark.parametrize("check", ["background", "swap"])
def test_a_check_that_hangs_on_the_masks_alone_must_have_them_all(check):
    whole, part = checks({check: [True] * 8}), checks({check: [True] * 8}).iloc[:1]
    with pytest.raises(DataError, match="different masks"):
        table(Tables(rows(), whole), Tables(rows(), part))


def test_yields_are_masks_an_image():
    one = generated({"a/0": 10, "a/1": 20, "b/0": 6, "c/0": 8, "c/1": 0})
    other = generated({"a/0": 5, "a/1": 5, "b/0": 6, "c/0": 0, "c/1": 0})
    found = table(Tables(rows(), generated=one), Tables(rows(), generated=other))
    row = cell(found, "yield", "generated masks an image", "all")
    assert row["base"] == pytest.approx((15 + 6 + 4) / 3)
    assert row["tuned"] == pytest.approx((5 + 6 + 0) / 3)
    assert row["images"] == 5
    assert cell(found, "yield", "generated masks an image", "part")["tuned"] == pytest.approx((5 + 6) / 2)


def test_one_round_alone_has_no_later_ones():
    found = table(Tables(rows()), Tables(rows()), rounds=[1], prompts=["box", "point"])
    kinds = found[["family", "kind"]].drop_duplicates().to_numpy().tolist()
    assert kinds == [["gain", "box"], ["box", "box"], ["point", "1 point"], ["everything", "everything"]]
    assert (found["p"] == 1).all()  # nothing changed


def test_other_masks_and_absent_rounds_are_errors():
    fewer = rows({place: images[:1] for place, images in BASE.items()})
    with pytest.raises(DataError, match="different masks: 3 only in the first, 0 only in the second"):
        table(Tables(rows()), Tables(fewer))
    with pytest.raises(DataError, match=r"no rounds \[7\].*'point'"):
        table(Tables(rows()), Tables(rows()), rounds=[1, 7])
    with pytest.raises(DataError, match="'random'"):
        table(Tables(rows()), Tables(rows()), prompts=["point", "random"])
    without = rows()
    with pytest.raises(DataError, match=r"differ in what was asked \(everything\)"):
        table(Tables(without[without["prompt"] != "everything"]), Tables(without))


def changes(values: Sets) -> pd.DataFrame:
    frame = pd.DataFrame([{**place, "change": value} for place, value in places(values)]).set_index(KEY).sort_index()
    return frame.set_axis(pd.MultiIndex.from_tuples([("point", "1 point")], names=["metric", "round"]), axis=1)


def all_flips(values: Sets) -> float:
    """The p-value of the overall mean by definition: every combination of signs of the images."""
    images = [(key, masks) for key, entries in values.items() for masks in entries]
    sizes = {key: sum(map(len, entries)) for key, entries in values.items()}
    means = []
    for signs in itertools.product((1, -1), repeat=len(images)):
        sets = dict.fromkeys(values, 0.0)
        for sign, (key, masks) in zip(signs, images, strict=True):
            sets[key] += sign * sum(masks) / sizes[key]
        means.append(abs(sum(sets.values()) / len(sets)))
    return sum(mean >= means[0] - 1e-12 for mean in means) / len(means)


def test_p_is_the_share_of_all_sign_flips_of_images():
    rng = np.random.default_rng(3)
    for shift in (0.0, 0.05, 0.1):
        values = {
            ("a", "part"): [list(rng.normal(shift, 0.1, size)) for size in (3, 1, 2, 4)],
            ("b", "salient"): [list(rng.normal(shift, 0.1, size)) for size in (1, 1, 5)],
        }
        found = sign_flips(changes(values), flips=20_000, seed=0)["overall", "all", "point", "1 point"]
        assert found == pytest.approx(all_flips(values), abs=0.015)  # 4 sd of 20,000 draws


def test_p_does_not_hang_on_the_order_of_rows_and_never_is_0():
    values: Sets = {("a", "part"): [[0.1 + 0.001 * number] for number in range(30)]}
    table = changes(values)
    found = [sign_flips(frame, flips=99, seed=0)["task", "part", "point", "1 point"] for frame in (table, table[::-1])]
    assert found == [pytest.approx(0.01)] * 2  # the real one of 100


@pytest.mark.parametrize("images", [6, 25])
def test_of_equal_models_one_in_twenty_gets_a_p_below_5_per_cent(images):
    """Masks of an image share their luck: a test that took masks for independent would cry wolf far more often."""
    rng, trials = np.random.default_rng(0), 400
    wide = changes({("a", "part"): [[0.0] * (1 + image % 4) for image in range(images)]})
    luck = rng.normal(size=(images, trials)) * 0.1
    order = wide.index.get_level_values("image_id").map({f"a/{image}": image for image in range(images)})
    noise = rng.normal(size=(len(wide), trials)) * 0.02
    columns = pd.MultiIndex.from_tuples([("trial", str(trial)) for trial in range(trials)], names=["metric", "round"])
    drawn = pd.DataFrame(luck[order.to_numpy()] + noise, index=wide.index, columns=columns)
    found = sign_flips(drawn, flips=999, seed=1)
    p = np.array([found["overall", "all", "trial", str(trial)] for trial in range(trials)])
    assert 0.02 < (p <= 0.05).mean() < 0.09  # 5 % +- 3.7 sd; of 6 images 1 in 32 is the smallest p: 3.1 or 6.2 %
    assert abs(np.mean(p <= 0.5) - 0.5) < 0.1


def test_interval_and_p_of_a_sure_gain_and_of_none_agree():
    rng = np.random.default_rng(5)
    base = {("a", "part"): [list(rng.uniform(0.3, 0.8, 3)) for _ in range(40)]}
    for shift, sure in ((0.03, True), (0.0, False)):
        tuned = {
            key: [[v + shift + rng.normal(0, 0.03) for v in masks] for masks in part] for key, part in base.items()
        }
        row = compare(changes(base), changes(tuned), resamples=500, seed=0).iloc[0]
        assert bool(row["low"] > 0) is sure
        assert bool(row["p"] < 0.05) is sure
