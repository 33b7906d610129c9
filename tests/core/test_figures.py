"""What a tracking server is given of an evaluation."""

from sum.core.figures import tracked_figures


def test_failures_are_counts():
    summary = {"overall": {"nof@80": {"count": 3, "low": 1.5, "high": 4.0}}, "task": {}, "dataset": {}}
    assert tracked_figures(summary) == {"all": {"nof_at_80": 3.0}}


def test_means_by_data_set_task_and_over_all():
    value = {"mean": 0.5, "low": 0.4, "high": 0.6}
    summary = {"masks": 3, "overall": {"iou@1": value}, "task": {"part": {"iou@5": value}}, "dataset": {"a": {}}}
    assert tracked_figures(summary) == {"all": {"iou_at_1": 0.5}, "task-part": {"iou_at_5": 0.5}, "a": {}}
