"""What a tracking server and `dvc metrics` are given of an evaluation."""

from sum.core.figures import tracked_figures

VALUE = {"mean": 0.5, "low": 0.4, "high": 0.6}
SCOPES = {"overall": {"iou@1": VALUE}, "task": {"part": {"iou@5": VALUE}}, "dataset": {"a": {}}}


def test_means_by_data_set_task_and_over_all():
    summary = {"masks": 3, **SCOPES}
    assert tracked_figures(summary) == {"all": {"iou_at_1": 0.5}, "task-part": {"iou_at_5": 0.5}, "a": {}}


def test_of_clicks_needed_one_level_over_all_sets_and_failures_are_counts():
    clicks = {f"nof@{level}": {"count": level, "low": 1.5, "high": 4.0} for level in (85, 90)}
    clicks |= {f"noc@{level}": {"mean": level / 20, "low": 1.0, "high": 6.0} for level in (85, 90)}
    summary = {"overall": clicks, "task": {"part": clicks}, "dataset": {"a": clicks}}
    assert tracked_figures(summary) == {"all": {"noc_at_90": 4.5, "nof_at_90": 90.0}, "task-part": {}, "a": {}}


def test_other_games_are_told_by_their_first_round_and_checks_over_all_sets():
    game = {f"iou@{number}": {"mean": number / 10} for number in (3, 10, 1)} | {
        "boundary_iou@1": VALUE,
        "noc@90": VALUE,
    }
    summary = {**SCOPES, "games": {"box": {"overall": game, "task": {"part": game}}}}
    summary["fidelity"] = {"swap": {"overall": {"mean": 0.75}, "task": {"part": {"mean": 0.25}}}}
    summary["generated"] = {"overall": 12.5, "task": {"part": 3}}
    assert tracked_figures(summary) == {
        "all": {"iou_at_1": 0.5, "box_iou_at_1": 0.1, "fidelity_swap": 0.75, "generated": 12.5},
        "task-part": {"iou_at_5": 0.5, "box_iou_at_1": 0.1},
        "a": {},
    }


def test_ious_come_first_in_the_order_of_rounds():
    values = {f"{metric}@{number}": VALUE for metric in ("boundary_iou", "iou") for number in (10, 9)}
    found = tracked_figures({"overall": values, "task": {}, "dataset": {}})
    assert list(found["all"]) == ["iou_at_9", "iou_at_10", "boundary_iou_at_9", "boundary_iou_at_10"]
