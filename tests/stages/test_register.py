"""The register stage on tables made by hand, with a real MLflow database."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from sum import tracking
from sum.champion import swap
from sum.config import Config, load_config
from sum.core.gate import CHECKS
from sum.data.score_tables import EVERYTHING_SCHEMA, FIDELITY_SCHEMA, ROW_SCHEMA, write_table
from sum.errors import DataError, MissingInput, ValidationFailed
from sum.registry import Registry
from sum.stages.register import run
from sum.storage import sha256_file, write_json

PROJECT = Path(__file__).parents[2]
DIGEST = "0123456789abcdef" * 4


@pytest.fixture
def config(tracking_uri, tmp_path, monkeypatch) -> Config:
    """The shipped params with this test's database; the working directory is this test's."""
    monkeypatch.chdir(tmp_path)
    return load_config([f"tracking.uri={tracking_uri}"], root=PROJECT)


def write_rows(
    model: str,
    iou: dict[tuple[str, str], float],
    *,
    masks: int = 3,
    rounds: int = 6,
    box: dict[tuple[str, str], float] | None = None,
    obeys: bool = True,
    generated: int | None = 10,
) -> None:
    """An evaluation where all masks of a set are alike, each on an image of its own.

    box: IoU of the game `box` where it is another; obeys: every check passes, or none; generated: masks an image, None:
    automatic generation was not asked for.
    """
    games = {"point": iou, "box": iou if box is None else box}
    rows, checks, counts = [], [], []
    for (task, dataset), value in iou.items():
        for mask in range(masks):
            image_id = f"{dataset}/{mask}"
            image = {"model": model, "dataset": dataset, "task": task, "image_id": image_id}
            place = {**image, "mask_id": f"{image_id}#0", "boundary_iou": 0.5}
            for prompt, values in games.items():
                rows += [
                    {**place, "prompt": prompt, "task_prompt": task, "round": number, "output": output}
                    | {"iou": values[task, dataset] if output == "oracle" else 0.0}
                    for number in range(1, rounds + 1)
                    for output in ("oracle", "single")
                ]
            if generated is not None:
                asked = {"prompt": "everything", "task_prompt": "unspecified", "round": 1, "output": "oracle"}
                rows.append({**place, **asked, "iou": value})
                counts.append({**image, "generated": generated})
            checks += [{**image, "mask_id": f"{image_id}#0", "check": check, "passed": obeys} for check in CHECKS]
    folder = Path("data/evaluation") / model
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "rows.parquet", rows, ROW_SCHEMA)
    write_table(folder / "fidelity.parquet", checks, FIDELITY_SCHEMA)
    write_table(folder / "everything.parquet", counts, EVERYTHING_SCHEMA)
    means = {dataset: {"iou@1": {"mean": value}} for (_, dataset), value in iou.items()}
    summary = {"overall": {"iou@1": {"mean": 0.5}}, "task": {"entity": {"iou@1": {"mean": 0.25}}}, "dataset": means}
    (folder / "summary.json").write_text(json.dumps(summary))
    everything = None if generated is None else {"points_per_side": 8}
    rules = {"prompts": list(games), "everything": everything, "fidelity": True, "resamples": 30, "benchmark": DIGEST}
    (folder / "protocol.json").write_text(json.dumps(rules))
    note_weights(model)


def note_weights(model: str) -> None:
    """As if the evaluation that is there had been of the weights that are there."""
    weights, protocol = Path(f"data/models/{model}/model.safetensors"), Path(f"data/evaluation/{model}/protocol.json")
    if weights.is_file() and protocol.is_file():
        rules = json.loads(protocol.read_text())
        protocol.write_text(json.dumps({**rules, "weights_sha256": sha256_file(weights)}))


def write_weights(budget: str, content: bytes, *, run_id: str | None = None) -> None:
    folder = Path("data/models") / budget
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    note_weights(budget)
    write_json(Path(f"data/checks/evaluation/{budget}.json"), {"success": True})  # as stage check_evaluation does
    if run_id is not None:
        (folder / "run.json").write_text(json.dumps({"run_id": run_id}))


def figures(entity: float, part: float) -> dict[tuple[str, str], float]:
    return {("entity", "demo_entity_test"): entity, ("part", "demo_part_test"): part}


@pytest.mark.parametrize("other", [{"choices": {"first prompt": "a box"}}, {"rounds": 9}, {"benchmark": "another"}])
def test_evaluations_by_different_rules_are_not_compared(config, other):
    write_rows("base", figures(0.6, 0.5))
    write_rows("small", figures(0.7, 0.6))
    write_weights("small", b"small")
    protocol = Path("data/evaluation/base/protocol.json")
    protocol.write_text(json.dumps(json.loads(protocol.read_text()) | other))
    with pytest.raises(DataError, match=rf"different rules \({next(iter(other))}\b"):
        run(config, budget="small")
    assert Registry(config.tracking.uri).at("sum", alias="champion") is None


def test_weights_that_were_not_evaluated_are_not_registered(config):
    write_rows("base", figures(0.6, 0.5))
    write_rows("small", figures(0.7, 0.6))
    write_weights("small", b"small")
    Path("data/models/small/model.safetensors").write_bytes(b"trained again")
    with pytest.raises(DataError, match=r"is of other weights than .*Run `dvc repro evaluate@small`"):
        run(config, budget="small")
    assert Registry(config.tracking.uri).at("sum", alias="champion") is None


def test_a_better_model_is_promoted(config):
    write_rows("base", figures(0.6, 0.5))
    write_rows("small", figures(0.7, 0.6))
    write_weights("small", b"small")
    path = run(config, budget="small")
    assert path == Path("data/registry/small.json")
    found = json.loads(path.read_text())
    assert found["verdict"] == "promoted"
    assert found["overall"] == {"base": pytest.approx(0.55), "tuned": pytest.approx(0.65), "gain": pytest.approx(0.1)}
    assert found["tasks"]["part"]["tuned"] == pytest.approx(0.6)
    assert found["versions"] == {"sum": "1", "sum-ft-small": "1"}
    registry = Registry(config.tracking.uri)
    for name in ("sum", "sum-ft-small"):
        champion = registry.at(name, alias="champion")
        assert champion is not None
        assert champion.tags["verdict"] == "promoted"
        assert "refused" not in champion.tags
    assert registry.at("sum", alias="small") is not None


def test_a_worse_model_is_registered_and_told_why_it_is_refused(config):
    write_rows("base", figures(0.6, 0.5))
    write_rows("small", figures(0.9, 0.45))
    write_weights("small", b"small")
    found = json.loads(run(config, budget="small").read_text())
    assert found["verdict"] == "refused"
    told = "50.0 -> 45.0: falls by 5.0 [5.0, 5.0], at most 2.0 is tolerated"
    kinds = ("1 point", "3, 5 points", "box", "box + 2, 4 points", "everything")
    assert found["reasons"] == [f"part, {kind}: {told}" for kind in kinds]
    registry = Registry(config.tracking.uri)
    version = registry.at("sum", alias="small")
    assert version is not None
    assert version.tags["refused"] == "; ".join(found["reasons"])
    assert registry.at("sum", alias="champion") is None
    assert registry.at("sum-ft-small", alias="champion") is None


@pytest.mark.slow
def test_the_best_budget_is_champion_of_all(config, caplog):
    caplog.set_level("INFO")
    write_rows("base", figures(0.6, 0.5))
    for budget, part in (("large", 0.7), ("small", 0.6)):  # the better one first
        write_rows(budget, figures(0.6, part))
        write_weights(budget, budget.encode())
        run(config, budget=budget)
    registry = Registry(config.tracking.uri)
    champion, large = registry.at("sum", alias="champion"), registry.at("sum", alias="large")
    assert champion == large
    assert registry.at("sum-ft-small", alias="champion") is not None
    told = json.loads(Path("data/registry/small.json").read_text())
    assert told["verdict"] == "promoted"
    why = "version 2 passed the gate, but 60.00 overall is not more than the 65.00 of version 1, which stays"
    assert told["champion"] == {"version": "1", "budget": "large", "previous": None, "why": why}
    assert f"champion of sum is version 1 (large): {why}" in caplog.text


def test_the_champion_before_keeps_an_alias(config):
    write_rows("base", figures(0.6, 0.5))
    for budget, part in (("small", 0.6), ("large", 0.7)):
        write_rows(budget, figures(0.6, part))
        write_weights(budget, budget.encode())
        told = json.loads(run(config, budget=budget).read_text())
    why = "version 2 passed the gate"
    assert told["champion"] == {"version": "2", "budget": "large", "previous": "1", "why": why}
    registry = Registry(config.tracking.uri)
    assert registry.at("sum", alias="previous") == registry.at("sum", alias="small")


@pytest.mark.parametrize(
    ("worse", "reason"),
    [
        ({"box": {("entity", "demo_entity_test"): 0.55, ("part", "demo_part_test"): 0.7}}, "entity, box: 60.0 -> 55.0"),
        ({"obeys": False}, "fidelity, background: 100.0 -> 0.0: falls by 100.0"),
        ({"generated": 4}, "overall, generated masks an image: 10.0 -> 4.0, at least 50% of the base's is wanted"),
    ],
)
def test_what_more_points_do_not_show_refuses_too(config, worse, reason):
    write_rows("base", figures(0.6, 0.5))
    write_rows("small", figures(0.7, 0.6), **worse)
    write_weights("small", b"small")
    found = json.loads(run(config, budget="small").read_text())
    assert found["verdict"] == "refused"
    assert found["reasons"][0].startswith(reason)


def test_what_was_not_evaluated_refuses_unless_it_is_not_required(config, caplog):
    caplog.set_level("INFO")
    for model, part in (("base", 0.5), ("small", 0.6)):
        write_rows(model, figures(0.6, part), generated=None)
    write_weights("small", b"small")
    found = json.loads(run(config, budget="small").read_text())
    assert found["not_looked_at"] == ["everything"]
    assert found["reasons"] == [
        "everything: not evaluated, but register.require names it; see evaluate.everything in params.yaml"
    ]
    lax = replace(config, register=replace(config.register, require=["point"]))
    assert json.loads(run(lax, budget="small").read_text())["verdict"] == "promoted"
    assert "the gate did not look at: everything" in caplog.text


def test_the_table_is_flat_in_json_and_with_the_run(config, tmp_path):
    write_rows("base", figures(0.6, 0.5))
    write_rows("small", figures(0.7, 0.6))
    write_weights("small", b"small")
    found = json.loads(run(config, budget="small").read_text())
    kinds, checks, places = 6, 3, 1 + 2 + 2
    assert len(found["table"]) == (kinds + checks + 1) * places
    row = next(row for row in found["table"] if (row["kind"], row["scope"], row["name"]) == ("box", "task", "part"))
    assert row == {
        **dict.fromkeys(("family", "kind"), "box"),
        **dict.fromkeys(("gain", "low", "high"), 0.1),
        **dict.fromkeys(("masks", "images"), 3),
        "scope": "task",
        "name": "part",
        "base": 0.5,
        "tuned": 0.6,
        "p": row["p"],
        "limit": -0.02,
        "ok": True,
    }
    assert 0 < row["p"] < 1
    client = Registry(config.tracking.uri).client
    table = pd.read_csv(client.download_artifacts(found["run_id"], "gate/table.csv", str(tmp_path)))
    assert table.astype(object).where(table.notna(), None).to_dict("records") == found["table"]
    verdict = json.loads(
        Path(client.download_artifacts(found["run_id"], "gate/verdict.json", str(tmp_path))).read_text()
    )
    assert verdict == {key: value for key, value in found.items() if key != "table"}


@pytest.mark.slow
def test_an_override_crowns_against_the_gate_for_good_and_says_so(config, caplog):
    write_rows("base", figures(0.6, 0.5))
    write_rows("small", figures(0.9, 0.45))
    write_weights("small", b"small")
    run(config, budget="small")
    reason = "parts are of no use to us"
    forced = replace(config, register=replace(config.register, override=reason))
    found = json.loads(run(forced, budget="small").read_text())
    assert (found["verdict"], found["override"]) == ("refused", reason)
    assert found["champion"]["why"] == f"version 1 by override: {reason}"
    assert [record.levelname for record in caplog.records if record.levelname != "INFO"] == ["WARNING"]
    assert f"small may be champion against the gate: {reason}" in caplog.text
    registry = Registry(config.tracking.uri)
    for name in ("sum", "sum-ft-small"):
        champion = registry.at(name, alias="champion")
        assert champion is not None
        assert champion.tags["override"] == reason
        assert champion.tags["refused"].startswith("part, 1 point")
    assert json.loads(run(config, budget="small").read_text()) == found  # `dvc repro` without the word changes nothing


@pytest.mark.slow
def test_a_rollback_outlives_the_next_run_of_register(config):
    write_rows("base", figures(0.6, 0.5))
    for budget, part in (("small", 0.6), ("large", 0.7)):
        write_rows(budget, figures(0.6, part))
        write_weights(budget, budget.encode())
        run(config, budget=budget)
    registry = Registry(config.tracking.uri)
    swap(registry, "sum", reason="large draws halos")
    told = json.loads(run(config, budget="large").read_text())
    why = "version 2 was rolled back: large draws halos"
    assert told["champion"] == {"version": "1", "budget": "small", "previous": "2", "why": why}
    forced = replace(config, register=replace(config.register, override="mended"))
    assert json.loads(run(forced, budget="large").read_text())["champion"]["version"] == "2"


@pytest.mark.slow
def test_running_again_makes_no_second_version_and_a_stricter_gate_takes_the_crown(config):
    write_rows("base", figures(0.6, 0.5))
    write_rows("small", figures(0.7, 0.6))
    write_weights("small", b"small")
    first = run(config, budget="small").read_bytes()
    assert run(config, budget="small").read_bytes() == first
    strict = replace(config, register=replace(config.register, min_gain=0.5))
    assert json.loads(run(strict, budget="small").read_text())["versions"] == {"sum": "1", "sum-ft-small": "1"}
    assert Registry(config.tracking.uri).at("sum", alias="champion") is None


@pytest.mark.slow
def test_new_weights_are_a_new_version_of_the_run_that_made_them(config):
    write_rows("base", figures(0.6, 0.5))
    write_rows("small", figures(0.7, 0.6))
    run_ids = []
    for content in (b"one", b"two"):
        logged = tracking.start_run(uri=config.tracking.uri, experiment="sum", name="ft-small", params={}, tags={})
        write_weights("small", content, run_id=logged.id)
        weights = Path("data/models/small/model.safetensors")
        logged.log_model(weights, name="ft-small", fingerprint=sha256_file(weights), params={})
        logged.finish()
        run_ids.append(logged.id)
        found = json.loads(run(config, budget="small").read_text())
        assert found["run_id"] == logged.id
    assert found["versions"]["sum-ft-small"] == "2"
    assert len(set(run_ids)) == 2


@pytest.mark.slow
def test_a_model_that_no_evaluation_was_logged_for_gets_its_figures_once(config):
    """After `dvc pull`, or when DVC took evaluate from its run cache, this server has not met the figures."""
    write_rows("base", figures(0.6, 0.5))
    write_rows("small", figures(0.7, 0.6))
    write_weights("small", b"small")
    told = json.loads(run(config, budget="small").read_text())
    model_id = told["model_id"]
    wanted = {"demo_entity_test": {"iou_at_1": 0.7}, "demo_part_test": {"iou_at_1": 0.6}}
    wanted |= {"task-entity": {"iou_at_1": 0.25}, "all": {"iou_at_1": 0.5}}
    registry = Registry(config.tracking.uri)
    assert registry.client.get_experiment(told["experiment_id"]).name == config.tracking.experiment
    assert registry.figures(model_id, digest=DIGEST) == wanted
    assert registry.figures(model_id, digest="another") == {}
    run(config, budget="small")
    assert len(registry.client.get_logged_model(model_id).metrics) == 4  # none a second time
    write_rows("small", figures(0.8, 0.6))  # evaluated by other settings, and those came from the run cache
    run(config, budget="small")
    assert registry.figures(model_id, digest=DIGEST)["demo_entity_test"] == {"iou_at_1": 0.8}


def test_what_is_missing_is_named_with_the_stage_that_makes_it(config):
    with pytest.raises(MissingInput, match=r"data/models/small/model.safetensors is missing.*finetune@small"):
        run(config, budget="small")
    write_weights("small", b"small")
    with pytest.raises(MissingInput, match=r"data/evaluation/base/protocol.json is missing.*evaluate@base"):
        run(config, budget="small")


def test_rounds_that_were_not_played_are_an_error(config):
    write_weights("small", b"small")
    write_rows("base", figures(0.6, 0.5), rounds=3)
    write_rows("small", figures(0.6, 0.5), rounds=3)
    with pytest.raises(DataError, match=r"no rounds \[5\] of every mask"):
        run(config, budget="small")


def test_other_masks_are_no_comparison(config):
    write_weights("small", b"small")
    write_rows("base", figures(0.6, 0.5), masks=3)
    write_rows("small", figures(0.7, 0.6), masks=4)
    with pytest.raises(DataError, match="different masks"):
        run(config, budget="small")
    assert not Path("data/registry").exists()


def test_tables_that_failed_their_check_are_not_judged(config):
    write_rows("base", figures(0.6, 0.5))
    write_rows("small", figures(0.7, 0.6))
    write_weights("small", b"small")
    report = Path("data/checks/evaluation/small.json")
    write_json(report, {"success": False})
    with pytest.raises(ValidationFailed, match="`dvc repro check_evaluation@small`"):
        run(config, budget="small")
    report.unlink()
    with pytest.raises(MissingInput, match="stage 'check_evaluation@small' writes it"):
        run(config, budget="small")
    assert not Path("data/registry").exists()
