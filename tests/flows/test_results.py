"""What a flow shows at its end."""

from __future__ import annotations

import json
from pathlib import Path

from flows.results import pointers, result_rows
from sum.commands.results import LOCAL


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def test_rows_of_what_has_been_evaluated(tmp_path):
    for model, first, third in (("base", 0.5, 0.61), ("small", 0.6, 0.7)):
        overall = {"iou@1": {"mean": first}, "iou@3": {"mean": third}}
        overall |= {"noc@80": {"mean": 4.5}, "nof@80": {"count": 7}}  # no IoUs: not in this table of per cent
        write(tmp_path / "data/evaluation" / model / "summary.json", {"overall": overall})
    told = {"verdict": "promoted", "reasons": ["gain"], "versions": {"sum": "2"}}
    told |= {"champion": {"version": "1", "budget": "large", "previous": None, "why": "a tie"}}
    write(tmp_path / "data/registry/small.json", told)
    assert result_rows(tmp_path, models=["base", "small", "large"]) == [
        {"model": "base", "iou@1": "50.00", "iou@3": "61.00", "gate": "-"},
        {"model": "small", "iou@1": "60.00", "iou@3": "70.00", "gate": "promoted"},
    ]
    text = pointers(tmp_path, budget="small", server=LOCAL, pages={}, waits=[])
    assert "sum version 2; promoted: gain" in text
    assert "Champion after it: version 1 (large): a tie" in text
    told["champion"] |= {"version": None, "budget": None, "why": "refused"}
    write(tmp_path / "data/registry/small.json", told)
    assert "nobody: refused" in pointers(tmp_path, budget="small", server=LOCAL, pages={}, waits=[])


def test_pointers_before_anything_is_there(tmp_path):
    where = {"server": "http://tracking:5000", "pages": {"Models": "/#/experiments/1/models", "Compare": "/#/compare"}}
    text = pointers(tmp_path, budget="small", **where, waits=["register@large"])
    assert "Report of this run: out of date are register@large (`dvc repro` makes all)" in text
    assert "http://tracking:5000/#/experiments?workflowType=machine_learning" in text
    assert "MLflow, models: http://tracking:5000/#/experiments/1/models\n" in text
    assert "http://tracking:5000/#/compare" in text
    assert "make ui" not in text


def test_the_report_is_linked_as_a_file(tmp_path):
    page = tmp_path / "data/report/index.html"
    page.parent.mkdir(parents=True)
    page.touch()
    text = pointers(tmp_path, budget="small", server=LOCAL, pages={}, waits=[])
    assert page.as_uri() in text
    assert "of this run" not in text
    text = pointers(tmp_path, budget="small", server=LOCAL, pages={}, waits=["finetune@large"])
    assert page.as_uri() in text
    assert "Report of this run: an older one; out of date are finetune@large" in text
    assert "make ui" in text
