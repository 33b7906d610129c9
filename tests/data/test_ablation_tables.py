"""Tables of an ablation against means and differences worked out plainly on made-up rows; published; the page."""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sum.ablation import BASE, Row
from sum.data import published
from sum.data.ablation_costs import COLUMNS, cost_table
from sum.data.ablation_findings import Findings, findings
from sum.data.ablation_page import charts, markdown, render
from sum.data.ablation_scores import Board, Draws, Scored, Scores, difference, long_table, scores
from sum.data.ablation_tables import Table, tables
from sum.data.grids import Words
from sum.data.score_tables import ROW_SCHEMA, ROWS, write_table
from sum.errors import DataError
from sum.storage import write_json

SETS = {"a": ("salient", 4, 1), "b": ("salient", 2, 3), "c": ("part", 3, 2)}  # set -> task, images, masks an image
ROUNDS = (1, 2, 3)
GAINS = {"sum": 0.2, "vanilla": 0.1, "human_only": 0.0}  # added to the base's IoU of every mask
LABELS = [Row("small", method, "full") for method in GAINS] + [
    Row("small", "vanilla", "lora"),
    Row("small", "sum", "lora"),
]
ONE = [Row("small", method, "hq") for method in GAINS]  # rows with one output
OUTPUTS = {"oracle": 0.0, "single": -0.1}  # output -> added to every IoU
DRAWS = Draws(resamples=200, seed=0)


def evaluation(
    folder: Path,
    gain: float,
    *,
    seed: int,
    sets: dict[str, tuple[str, int, int]] = SETS,
    rounds: tuple[int, ...] = ROUNDS,
) -> Path:
    """Rows whose IoU is the base's and a gain, with a noise that is the seed's; of the single output lower ones."""
    base, noise = np.random.default_rng(0), np.random.default_rng(1000 + seed)
    rows = []
    for name, (task, images, masks) in sets.items():
        for image, mask, number in itertools.product(range(images), range(masks), rounds):
            start = base.uniform(0.2, 0.6)
            iou = start + gain + (noise.normal(0, 0.01) if seed >= 0 else 0.0)
            place = {"dataset": name, "task": task, "image_id": f"{name}/{image}", "mask_id": f"{name}/{image}#{mask}"}
            game = {"model": "m", "prompt": "point", "task_prompt": task, "area": 9, "round": number}
            for output, less in OUTPUTS.items():
                values = {"iou": iou + less, "boundary_iou": (iou + less) / 2, "predicted_iou": 0.5}
                rows.append({**place, **game, "output": output, **values})
    folder.mkdir(parents=True)
    write_table(folder / ROWS, rows, ROW_SCHEMA)
    return folder


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Board]:
    folder = tmp_path_factory.mktemp("board")
    base = evaluation(folder / "base/data/evaluation/base", 0.0, seed=-1)
    scored = []
    for at, row in enumerate([*LABELS, *ONE]):
        seeds = (0, 1, 2) if row.method != "human_only" else (0, 2)
        found = {
            seed: evaluation(
                folder / f"{row.name}-{seed}/data/evaluation/small", GAINS[row.method], seed=10 * at + seed
            )
            for seed in seeds
        }
        scored.append(Scored(row, found))
    several = [entry for entry in scored if entry.row in LABELS]
    single = Board(base, scored, ("point", False), output="single")
    return {"oracle": Board(base, several, ("point", False)), "single": single}


@pytest.fixture(scope="module")
def both(boards: dict[str, Board]) -> dict[str, Scores]:
    return {name: scores(board, DRAWS, rounds=[1, 3], same_data=frozenset()) for name, board in boards.items()}


@pytest.fixture(scope="module")
def board(boards: dict[str, Board]) -> Board:
    return boards["oracle"]


@pytest.fixture(scope="module")
def long(both: dict[str, Scores]) -> pd.DataFrame:
    return both["oracle"].long


@pytest.fixture(scope="module")
def pairs(both: dict[str, Scores]) -> pd.DataFrame:
    return both["oracle"].pairs


@functools.cache
def read(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / ROWS)


def plain_mean(folder: Path, name: str, metric: str, number: int, *, output: str = "oracle") -> float:
    """Over the masks of a set, then over sets: loops, no table."""
    rows = read(folder)
    means = []
    for dataset, (task, _, _) in SETS.items():
        if name in ("all", task):
            chosen = rows[(rows["dataset"] == dataset) & (rows["round"] == number) & (rows["output"] == output)]
            values = chosen[metric].tolist()
            means.append(sum(values) / len(values))
    return sum(means) / len(means)


@pytest.mark.parametrize("output", sorted(OUTPUTS))
def test_means_and_gains_are_those_worked_out_by_hand(boards, both, output: str) -> None:
    board, long = boards[output], both[output].long
    assert set(long["output"]) == {output}
    assert len(long) == (1 + len(board.scored)) * 3 * 2 * len(ROUNDS)
    base = next(iter(board.scored[0].seeds.values())).parents[3] / "base/data/evaluation/base"
    for entry in board.scored:
        own = long[long["row"] == entry.row.name]
        for line in own.to_dict("records"):
            place = (line["task"], line["metric"], line["round"])
            reached = [plain_mean(folder, *place, output=output) for folder in entry.seeds.values()]
            assert line["mean"] == pytest.approx(sum(reached) / len(reached))
            assert line["gain"] == pytest.approx(sum(reached) / len(reached) - plain_mean(base, *place, output=output))
            assert line["seeds"] == len(reached)
            assert line["low"] < line["mean"] < line["high"]
            assert line["gain_low"] < line["gain"] < line["gain_high"]
    assert long.loc[long["row"] == BASE, "gain"].isna().all()


def test_pairs_are_differences_of_common_seeds_and_sure_where_the_truth_differs(
    board: Board, pairs: pd.DataFrame
) -> None:
    rows = len(LABELS)
    assert len(pairs) == (rows + rows * (rows - 1) // 2) * 3 * 2
    by_name = {entry.row.name: entry for entry in board.scored}
    shown = pairs[(pairs["task"] == "all") & (pairs["metric"] == "iou") & (pairs["second"] != BASE)]
    for line in shown.to_dict("records"):
        one, two = by_name[line["first"]], by_name[line["second"]]
        common = one.seeds.keys() & two.seeds.keys()
        assert line["seeds"] == len(common)
        wanted = [
            np.mean([plain_mean(entry.seeds[seed], "all", "iou", number) for seed in common for number in (1, 3)])
            for entry in (one, two)
        ]
        assert line["difference"] == pytest.approx(wanted[0] - wanted[1])
        assert line["low"] <= line["difference"] <= line["high"]
        assert line["sure"] == (one.row.method != two.row.method)
    back = difference(pairs, Row("small", "vanilla", "full"), "small-sum-full")
    there = difference(pairs, Row("small", "sum", "full"), "small-vanilla-full")
    assert back is not None
    assert there is not None
    assert back["difference"] == -there["difference"] < 0
    assert (back["low"], back["high"]) == (-there["high"], -there["low"])
    assert difference(pairs, Row("small", "sum", "full"), "small-u2pl-full") is None


def test_an_evaluation_of_other_masks_is_refused(tmp_path: Path) -> None:
    base = evaluation(tmp_path / "base", 0.0, seed=-1)
    other = evaluation(tmp_path / "other", 0.1, seed=0, sets={"a": SETS["a"]})
    with pytest.raises(DataError, match=r"row small-sum-full, seed 0 was evaluated on other masks"):
        Board(base, [Scored(Row("small", "sum", "full"), {0: other})], ("point", False))


def made(boards: dict[str, Board], both: dict[str, Scores]) -> list[Table]:
    return tables(both["oracle"], both["single"], cost_table(boards["single"].scored, {}), told=[1, 3])


def test_tables_have_every_row_with_intervals_and_claim_only_what_is_sure(boards, both, long) -> None:
    found = {table.title: table for table in made(boards, both)}
    assert list(found) == [
        "small: all tasks (as Table 1)",
        "small: methods (as Table 2)",
        "small: salient",
        "small: part",
        "small: single output (as Table 11)",
        "small: single output, methods",
        "What it costs",
        "Published",
    ]
    first = found["small: all tasks (as Table 1)"]
    assert [name for name, _ in first.lines] == ["base", "sum", "vanilla", "human_only", "vanilla, lora", "sum, lora"]
    line = long[(long["row"] == "small-sum-full") & (long["task"] == "all")].set_index(["metric", "round"])
    cell = dict(first.lines)["sum"][1]
    assert cell.value.startswith(f"{100 * line.loc[('iou', 3), 'mean']:.1f} ±")
    assert cell.change.startswith(f"{100 * line.loc[('iou', 3), 'gain']:+.1f} ±")
    assert cell.change.endswith("▲")
    variants = dict(found["small: methods (as Table 2)"].lines)
    assert [cell.value[-1] for cell in variants["vanilla"][2:4]] == ["▲", "▼"]  # on the base; below sum
    assert variants["human_only"][2].value[-1] == "]"  # nothing was added to it
    assert variants["human_only"][4].value == "2"
    assert variants["sum"][3].value == variants["base"][2].value == "-"
    assert variants["vanilla, lora"][3].value[-1] == "▼"  # below sum in lora


def test_rows_with_one_output_stand_only_among_single_outputs(boards, both) -> None:
    one = {row.label for row in ONE}
    every = {"base", *(row.label for row in LABELS), *one}
    for table in made(boards, both)[:-2]:
        names = {name for name, _ in table.lines}
        assert names == (every if "single output" in table.title else every - one), table.title
        assert ("output single" in table.words) == ("single output" in table.title)
    found = {table.title: table for table in made(boards, both)}
    single = found["small: single output (as Table 11)"]
    assert single.head == ["method", "salient", "part", "all"]
    line = both["single"].long.set_index(["row", "task", "metric", "round"]).loc["small-sum-hq", "part", "iou", 3]
    cell = dict(single.lines)["sum, hq"][1]  # after the last round: there are no six
    assert cell.value.startswith(f"{100 * line['mean']:.1f} ±")
    assert cell.change.startswith(f"{100 * line['gain']:+.1f} ±")
    variants = dict(found["small: single output, methods"].lines)
    assert [cell.value[-1] for cell in variants["vanilla, hq"][2:4]] == ["▲", "▼"]  # on the base; below sum in hq
    assert set(both["oracle"].pairs["output"]) == {"oracle"}
    assert set(both["single"].pairs["output"]) == {"single"}
    assert not both["oracle"].long["row"].isin([row.name for row in ONE]).any()


@pytest.mark.slow
def test_single_outputs_are_measured_against_table_11(tmp_path: Path) -> None:
    rounds = tuple(range(1, 7))
    base = evaluation(tmp_path / "base", 0.0, seed=-1, rounds=rounds)
    seeds = {row: {0: evaluation(tmp_path / row.name, 0.1, seed=0, rounds=rounds)} for row in (LABELS[0], *ONE)}
    scored = [Scored(row, found) for row, found in seeds.items()]
    single = Board(base, scored, ("point", False), output="single")
    oracle = Board(base, scored[:1], ("point", False))
    for same, wanted in ((frozenset[str](), False), (frozenset({"all", "part"}), True)):
        found = [scores(board, DRAWS, rounds=[1], same_data=same) for board in (oracle, single)]
        shown = {table.title: table for table in tables(*found, cost_table(scored, {}), told=[1])}
        lines = dict(shown["small: single output (as Table 11)"].lines)
        assert ("sum, hq, published" in lines) == wanted
        assert "base, published" not in lines  # of SAM nothing is printed there
        assert "sum, published" not in lines
        beside = {name: cells[0].value for name, cells in shown["Published"].lines}
        assert beside["small: sum, hq: all mIoU, 6, single"] == "83.0"
        assert beside["small: human_only, hq: part mIoU, 6, single"] == "60.0"
    assert [cell.value for cell in lines["sum, hq, published"]] == ["-", "70.8", "83.0"]  # salient: of other data


def test_published_figures_stand_where_budget_method_metric_and_round_are_the_same(boards, both, long) -> None:
    told = long[long["published"].notna() & (long["task"] == "all")]
    shown = {(row, f"{metric}@{number}") for row, metric, number in told[["row", "metric", "round"]].to_numpy()}
    assert shown == {  # Tables 1 and 2; nothing of the small budget at 1 point, nothing of light-weight rows
        *((BASE, key) for key in ("iou@1", "iou@3", "boundary_iou@3")),
        *(("small-sum-full", key) for key in ("iou@3", "boundary_iou@3")),
        *(("small-vanilla-full", key) for key in ("iou@3", "boundary_iou@3")),
    }
    assert not long["published_same_data"].any()
    lines = dict(made(boards, both)[-1].lines)
    assert [cell.value for cell in lines["small: sum: all mIoU, 3"][:2]] == ["81.0", "+3.8"]  # Table 1: 81.0 - 77.2


@pytest.mark.slow
def test_published_lines_stand_among_ones_own_on_the_papers_data_only(boards, both) -> None:
    same = replace(both["oracle"], long=long_table(boards["oracle"], DRAWS, same_data=frozenset({"all"})))
    first = next(iter(made(boards, {**both, "oracle": same})))
    lines = dict(first.lines)
    assert [cell.value for cell in lines["base, published"]] == ["69.0", "77.2", "-", "70.6"]
    assert first.published
    assert [cell.value for cell in lines["sum, published"]] == ["-", "81.0", "-", "74.8"]
    assert "vanilla, lora, published" not in lines
    assert published.SAM not in first.to_markdown()


def test_costs_are_read_and_what_is_not_there_is_a_dash(tmp_path: Path, boards, both) -> None:
    row, data = Row("small", "sum", "full"), tmp_path / "data"
    folder = evaluation(data / "evaluation/small", 0.0, seed=0)
    write_json(data / "models/small/summary.json", {"steps": 4, "trained": 1234567})
    write_json(data / "models/small/run.json", {"seconds": 6.0, "peak_memory_mb": 1500.0})
    (data / "models/small/delta.safetensors").write_bytes(b"0" * 2_500_000)
    write_json(data / "timing/small.json", {"device": "cpu", "threads": 2})
    costs = cost_table([Scored(row, {0: folder})], {(row, 0): 30.0})
    assert list(costs.columns) == list(COLUMNS)
    assert costs.iloc[0].to_dict() == {
        "row": row.name,
        "budget": "small",
        "method": "sum",
        "arch": "full",
        "seed": 0,
        "steps": 4,
        "trained": 1234567,
        "delta_mb": 2.5,
        "seconds_a_step": 1.5,
        "peak_memory_mb": 1500.0,
        "training_seconds": 6.0,
        "total_seconds": 36.0,
        "device": "cpu",
        "threads": 2,
    }
    own = []
    for found in both.values():
        lines = found.long[found.long["row"].isin([BASE, row.name])]
        own.append(replace(found, rows=[row], long=lines))
    shown = next(table for table in tables(*own, costs, told=[1, 3]) if "costs" in table.title)
    assert [cell.value for cell in shown.lines[0][1]] == ["1,234,567", "2.50", "1.50", "1,500", "0.1", "0.6"]
    bare = next(table for table in made(boards, both) if "costs" in table.title)
    assert {cell.value for _, cells in bare.lines for cell in cells} == {"-"}


@pytest.mark.slow
def test_the_page_is_one_file_without_scripts(boards, both) -> None:
    shown, drawn = made(boards, both), charts(both["oracle"], both["single"])
    assert [name for name, _, _ in drawn] == ["curves-small", "curves-small-light", "curves-small-single"]
    assert all(png.startswith(b"\x89PNG") for _, _, png in drawn)
    told = Findings("One seed", "images (one seed)", "In points", ["a is <b>"])
    words = {"found": told, "facts": [("steps", "3")], "warnings": ["failed: x"]}
    page = render(shown, drawn, **words)
    assert "<script" not in page
    assert "javascript:" not in page
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert {link[1:] for link in links if link.startswith("#")} <= set(re.findall(r'id="([^"]*)"', page))
    assert "url(" not in page
    assert "a is &lt;b&gt;" in page
    assert "<b>One seed.</b>" in page
    assert "interval over images (one seed)." in page
    assert "<b>.</b>" not in render(shown, drawn, **(words | {"found": replace(told, caution="")}))
    assert "Every row was trained" not in page  # a warning says otherwise
    assert "Every row was trained" in render(shown, drawn, **(words | {"warnings": []}))
    text = markdown(shown, **words)
    assert "**Mind:** failed: x.\n\n**One seed.**\n\n## What is sure\n\nIn points.\n\n- a is <b>\n" in text
    assert all(f"## {table.title}" in text for table in shown)
    own = [table for table in shown if not table.published]
    assert len(own) == len(shown) - 1
    for of, wanted in ((shown, True), (own, False)):
        assert all(
            ("Published figures: " in made) == wanted for made in (render(of, drawn, **words), markdown(of, **words))
        )


def test_every_column_of_figures_is_right_aligned() -> None:
    cells = [Words("1.0"), Words("10.0", "+1.0")]
    text = Table("t", "w", ["method", "mIoU, 1", "mIoU, 3"], [("sum", [*cells])]).to_markdown()
    assert text.splitlines()[4:] == [
        "| method | mIoU, 1 |     mIoU, 3 |",
        "| ------ | ------: | ----------: |",
        "| sum    |     1.0 | 10.0 (+1.0) |",
    ]


def plain_gain(entry: Scored, base: Path, name: str, *, output: str) -> float:
    """Per cent of mIoU on the base, mean over seeds and the rounds 1 and 3: loops, no table."""
    gains = [
        plain_mean(folder, name, "iou", number, output=output) - plain_mean(base, name, "iou", number, output=output)
        for folder in entry.seeds.values()
        for number in (1, 3)
    ]
    return 100 * sum(gains) / len(gains)


def test_what_is_sure_names_measure_and_tasks(boards, both) -> None:
    found = findings(both["oracle"], both["single"], told=[1, 3])
    assert found.caution == ""
    assert found.over == "seeds and images"
    assert found.measure.startswith("In points of mIoU, mean over 1 and 3 clicks, over all sets, ")
    assert "over seeds and images;" in found.measure
    lines = {line.split(": ")[1]: line for line in found.sure if line.startswith("small: ")}
    base = next(iter(boards["oracle"].scored[0].seeds.values())).parents[3] / "base/data/evaluation/base"
    for entry in boards["single"].scored:
        output = "single" if entry.row in ONE else "oracle"
        line = lines[entry.row.label + (" (single output)" if entry.row in ONE else "")]
        if entry.row.method == "human_only":
            assert "not surely better or worse than the base, " in line
            continue
        told = [f"{task} {plain_gain(entry, base, task, output=output):+.1f}" for task in ("salient", "part")]
        assert f"surely better than the base, {plain_gain(entry, base, 'all', output=output):+.1f} [" in line
        assert f"] ({', '.join(told)})" in line
        assert ("surely worse than sum, -" in line) == (entry.row.method == "vanilla")
    assert "one training" not in " ".join(found.sure)


def test_a_loss_in_one_task_is_told_beside_a_gain_over_all(both) -> None:
    pairs = both["oracle"].pairs.copy()
    own = (pairs["first"] == "small-sum-full") & (pairs["second"] == BASE) & (pairs["metric"] == "iou")
    pairs.loc[own & (pairs["task"] == "part"), ["difference", "low", "high", "sure"]] = [-0.015, -0.02, -0.01, True]
    pairs.loc[own & (pairs["task"] == "salient"), ["low", "high", "sure"]] = [-0.1, 0.5, False]
    found = findings(replace(both["oracle"], pairs=pairs), both["single"], told=[1, 3])
    assert re.match(r"small: sum: surely better than the base, \+\d+\.\d \[.*\] \(part -1\.5\)$", found.sure[0])


def test_one_seed_is_said_to_be_one_training(boards) -> None:
    """Of all rows, or of the one that lacks a second seed."""
    several = boards["oracle"].scored[:2]
    base = next(iter(several[0].seeds.values())).parents[3] / "base/data/evaluation/base"
    alone = [Scored(entry.row, {0: entry.seeds[0]}) for entry in several]
    own, mixed = (
        scores(Board(base, scored, ("point", False)), Draws(resamples=20, seed=0), rounds=[3], same_data=frozenset())
        for scored in (alone, [several[0], alone[1]])
    )
    found = findings(own, own, told=[3])
    assert found.caution.startswith("One seed: intervals are over test images only and say nothing of another training")
    assert found.over == "images (one seed)"
    assert found.measure.startswith("In points of mIoU, after 3 clicks, ")
    assert found.sure[0].startswith("small: sum: surely, for this one training, better than the base, +")
    assert "; surely, for this one training, worse than sum, -" in found.sure[1]
    assert "1 of 1 pairs of rows differ surely, for this one training, by output oracle" in found.sure[-1]
    assert "; fewer than 1 would by chance" in found.sure[-1]
    shown = {table.title: table.words for table in tables(own, own, cost_table(alone, {}), told=[3])}
    assert "intervals over images (one seed);" in shown["small: methods (as Table 2)"]
    found = findings(mixed, mixed, told=[3])
    assert found.caution.startswith("One seed of small-vanilla-full: ")
    assert found.over == "seeds and images (of images only where there is one seed)"
    assert found.sure[0].startswith("small: sum: surely better than the base")
    assert "surely, for this one training, worse than sum" in found.sure[1]
