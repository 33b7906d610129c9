"""Each expectation of evaluation tables meets a table really altered; good ones pass; damage is a failed check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sum.data.evaluation_beside import beside_rules
from sum.data.evaluation_checks import OUTPUTS as CHECKED_OUTPUTS
from sum.data.evaluation_checks import check_evaluation, coverage_rules, row_rules
from sum.data.records import ImageRecord, MaskRecord, write_manifest
from sum.data.reports import Report
from sum.data.score_tables import ROW_SCHEMA, ROWS, games_of, write_table
from sum.errors import MissingInput
from sum.models.interact import OUTPUTS

pytestmark = pytest.mark.filterwarnings(  # of great_expectations' own imports
    "ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning"
)
MODELS = ("base", "small")
ROUNDS = 3
Row = dict[str, Any]


def manifest(folder: Path, images: Sequence[str]) -> None:
    """A test image with a mask for each name; and a train image with one."""
    records = [ImageRecord(name, "t", f"{name}.jpg", "0" * 64, 8, 8, "part", "test", "MIT") for name in images]
    masks = [MaskRecord(f"{name}#0", name, "t", "part", "test", 4, 0, 0, 1, 1, "", "", "") for name in images]
    masks.append(replace(masks[0], mask_id="h/0#0", image_id="h/0", split="train"))
    write_manifest(folder / "manifest", records, masks)


def played(model: str, image_id: str) -> list[Row]:
    """The rows of a mask as the benchmark plays it: by a point, with both task prompts, and everything."""
    row = {"model": model, "dataset": "t", "task": "part", "image_id": image_id, "mask_id": f"{image_id}#0"}
    row |= {"iou": 0.5, "boundary_iou": 0.25, "predicted_iou": 0.75, "click_x": 1, "click_y": 1, "click_label": 1}
    every = [(output, number) for output in ("oracle", "single") for number in range(1, ROUNDS + 1)]
    row |= {"area": 4}
    return [
        row | {"prompt": prompt, "task_prompt": task, "round": number, "output": output}
        for prompt, task in (("point", "part"), ("point", "unspecified"))
        for output, number in [*every, ("confident", 1)]
    ] + [row | {"prompt": "everything", "task_prompt": "unspecified", "round": 1, "output": "oracle"}]


def write(folder: Path, tables: dict[str, list[Row]]) -> None:
    for model, rows in tables.items():
        (folder / "evaluation" / model).mkdir(parents=True, exist_ok=True)
        write_table(folder / "evaluation" / model / ROWS, rows, ROW_SCHEMA)


def check(folder: Path) -> Report:
    games = games_of({"prompts": ["point"], "unspecified": True, "everything": True})
    options = {"models": MODELS, "rounds": ROUNDS, "games": games, "docs": folder / "docs"}
    return check_evaluation(folder / "manifest", folder / "evaluation", **options)  # type: ignore[arg-type]


def change(number: int, **values: object) -> Callable[[list[Row]], None]:
    """Change one row of a mask; 0 to 2 are oracle, 3 to 5 single, 6 confident."""
    return lambda rows: rows[number].update(values)


ROUND = "every test mask has every round exactly once, output"
SAME = "every model has the same masks"
ALTERED: dict[str, tuple[Callable[[list[Row]], object], set[str]]] = {  # rule -> alteration, other rules it breaks
    "no row twice": (lambda rows: rows.append(rows[0]), {f"{ROUND} oracle"}),
    "rows are of their model": (change(2, model="large"), set()),
    "mask is in the manifest": (
        lambda rows: [row.update(mask_id="x#0") for row in rows[:7]],
        {f"{ROUND} oracle", SAME},
    ),
    "mask is of split test": (
        lambda rows: [row.update(mask_id="h/0#0") for row in rows[:7]],
        {f"{ROUND} oracle", SAME},
    ),
    "image_id is that of the manifest": (change(1, image_id="t/other"), set()),
    "dataset is that of the manifest": (change(1, dataset="other"), set()),
    "task is that of the manifest": (change(1, task="entity"), set()),
    "task is salient, entity or part": (change(1, task="thing"), {"task is that of the manifest"}),
    "area is that of the manifest": (change(1, area=5), set()),
    "prompt was to be played": (change(14, prompt="box"), {f"{ROUND} oracle"}),
    "task prompt is the mask's task or unspecified": (change(6, task_prompt="salient"), set()),
    "output is known": (
        change(6, output="best"),
        {"every test mask has the first round exactly once, output confident"},
    ),
    f"round is 1..{ROUNDS}": (change(2, round=4), {f"{ROUND} oracle"}),
    "figures are finite numbers": (change(4, iou=float("nan"), predicted_iou=float("inf")), set()),
    "iou is 0..1": (change(0, iou=1.01), set()),
    "boundary_iou is 0..1": (change(0, boundary_iou=-0.01), set()),
    f"{ROUND} oracle": (lambda rows: rows.pop(1), set()),
    f"{ROUND} single": (lambda rows: rows.pop(4), set()),
    "every test mask has the first round exactly once, output confident": (lambda rows: rows.pop(6), set()),
    SAME: (list.clear, {f"{ROUND} oracle"}),
}


@pytest.fixture(scope="module")
def altered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    """Broken rule -> its rows, of a table in which each rule is broken in an image of its own."""
    folder = tmp_path_factory.mktemp("altered")
    images = [f"t/{number:02d}" for number in range(len(ALTERED))]
    manifest(folder, ["t/good", *images])
    tables = {model: played(model, "t/good") for model in MODELS}
    for image_id, (alter, _) in zip(images, ALTERED.values(), strict=True):
        tables["base"] += played("base", image_id)
        rows = played("small", image_id)
        alter(rows)
        tables["small"] += rows
    write(folder, tables)
    report = check(folder)
    assert [outcome.rule for outcome in report.outcomes] == [
        rule.text for rule in (*row_rules(ROUNDS, prompts=["point"]), *coverage_rules(), *beside_rules())
    ]
    assert {outcome.rule for outcome in report.failed} == set(ALTERED)
    assert not any(outcome.error for outcome in report.outcomes)
    return {outcome.rule: outcome.rows for outcome in report.failed}


@pytest.mark.parametrize("rule", ALTERED)
def test_an_altered_mask_breaks_its_rule(altered: dict[str, tuple[str, ...]], rule: str) -> None:
    strangers = {"mask is in the manifest": "x#0", "mask is of split test": "h/0#0"}
    name = strangers.get(rule, f"t/{list(ALTERED).index(rule):02d}#0")
    broken = {one for one, texts in altered.items() if any(f"mask_id {name}" in text for text in texts)}
    others = ALTERED[rule][1]
    if rule in strangers:  # their rounds are there; the mask whose place they took has none, and its image is another
        assert rule in broken
        return
    if rule == SAME:
        others = {one for one in ALTERED if " exactly once" in one}
    assert broken == {rule} | others


def test_rounds_and_models_are_named(altered: dict[str, tuple[str, ...]]) -> None:
    place = list(ALTERED).index(f"{ROUND} oracle")
    assert (
        f"mask_id t/{place:02d}#0, oracle small has rounds [1, 3] of point, task prompt own"
        in altered[f"{ROUND} oracle"]
    )
    place = list(ALTERED).index(SAME)
    assert f"absent_in small, mask_id t/{place:02d}#0" in altered[SAME]


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    manifest(tmp_path, ["t/0", "t/1"])
    write(tmp_path, {model: played(model, "t/0") + played(model, "t/1") for model in MODELS})
    return tmp_path


def test_good_tables_pass(sound: Path) -> None:
    report = check(sound)
    assert not [outcome.text for outcome in report.outcomes if not outcome.success]
    rows = 2 * 2 * (2 * (2 * ROUNDS + 1) + 1)
    assert report.rows == {"evaluation_rows": rows, "evaluation_masks": 2, "evaluation_beside": 2}
    assert (sound / "docs" / "index.html").is_file()


def test_a_damaged_table_is_a_failed_check_and_a_missing_one_names_its_stage(sound: Path) -> None:
    path = sound / "evaluation" / "small" / ROWS
    path.write_bytes(path.read_bytes()[:-9])
    report = check(sound)
    assert len(report.failed) == len(report.outcomes)
    assert str(path) in report.outcomes[0].error
    path.unlink()
    with pytest.raises(MissingInput, match="stage 'check_evaluation' reads it, stage 'evaluate@small' writes it"):
        check(sound)


def test_the_outputs_are_those_of_the_benchmark() -> None:
    assert set(CHECKED_OUTPUTS) == set(OUTPUTS)
