"""`python -m sum compare`: what its words mean, what is evaluated again, what is refused, and what is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from sum import named_weights
from sum.cli import main
from sum.commands.compare_models import groups_of, resolve
from sum.config import load_config
from sum.data import report_page
from sum.data.score_tables import of_game, read_rows
from sum.errors import CheckpointError, ConfigError, MissingInput
from sum.models.archs import ArchSpec
from sum.models.backbones import BACKBONES
from sum.models.checkpoint import backbone_of, load_segmenter
from sum.models.deltas import save_both, save_delta
from sum.models.parts import select_parts
from sum.registry import Registry
from sum.stages import evaluate
from sum.storage import sha256_file
from sum.tracking import start_run
from tests.bench_world import BARE, PARAMS, configured, make_manifest, make_weights, tuned_weights

OUT = Path("data/comparison")
SMALL = Path("data/models/small/model.safetensors")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: tuple[Path, Path], tracking_uri: str) -> Path:
    """A project with test images, a base and a tuned model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report_page, "curves", lambda *_, **__: b"PNG")  # matplotlib takes a second a page
    make_manifest()
    tree = asdict(configured(weights, rounds=1, report_rounds=[1], **BARE))
    tree["tracking"]["uri"] = tracking_uri
    plain = yaml.safe_load(PARAMS.read_text())
    plain |= {name: tree[name] for name in ("device", "model", "evaluate", "register", "tracking", "pseudo_label")}
    Path("params.yaml").write_text(yaml.safe_dump(plain))
    tuned_weights(weights, SMALL, prompt=0.5)
    return tmp_path


def test_two_models_are_evaluated_once_and_laid_side_by_side(
    bench: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "base", "small"]) == 0
    said = capsys.readouterr().out
    table = pd.read_csv(OUT / "table.csv", index_col="model")
    assert list(table.index) == ["base", "small"]
    folders = sorted(Path("work/compare/evaluations").iterdir())
    means = {}
    for folder in folders:
        rows = of_game(read_rows(folder, reader="test"), prompt="point")
        rows = rows[rows["output"] == "oracle"]
        means[rows["model"].iloc[0]] = 100 * rows.groupby("dataset")["iou"].mean().mean()
    assert table["all mIoU@1"].to_dict() == pytest.approx(means, abs=0.006)
    assert f"{means['small']:.1f} ±" in said
    assert "data/comparison/index.html" in said
    assert "small: the gate would say: refused" in said  # everything and fidelity are off: the gate wants them
    page = (OUT / "index.html").read_text()
    assert "small: refused" in page
    assert f"{means['small']:.1f} ±" in page
    assert not Path("data/evaluation").exists()
    monkeypatch.setattr(evaluate, "examine", lambda *_, **__: pytest.fail("evaluated again"))
    assert main(["compare", "base", "small"]) == 0
    assert main(["compare", "small", str(bench / "data/models/small/model.safetensors")]) == 2  # the same label twice


@pytest.mark.slow
def test_evaluations_of_the_pipeline_are_found_again(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Quiet:
        def log_evaluation(self, *_: object, **__: object) -> None:
            """As MLflow would."""

    monkeypatch.setattr(evaluate, "run_of_weights", lambda *_, **__: Quiet())
    for model in ("base", "small"):
        evaluate.run(load_config(), model=model)
    means = {
        model: 100 * json.loads((evaluate.OUT / model / "summary.json").read_text())["overall"]["iou@1"]["mean"]
        for model in ("base", "small")
    }
    assert means["base"] != pytest.approx(means["small"], abs=0.01)
    monkeypatch.setattr(evaluate, "examine", lambda *_, **__: pytest.fail("evaluated again"))
    assert main(["compare", "base", "small"]) == 0
    table = pd.read_csv(OUT / "table.csv", index_col="model")
    assert table["all mIoU@1"].to_dict() == pytest.approx(means, abs=0.006)
    monkeypatch.setattr(evaluate, "code_hash", lambda: "of other code")
    with pytest.raises(BaseException, match="evaluated again"):
        main(["compare", "base", "small"])
    monkeypatch.undo()
    monkeypatch.chdir(bench)
    monkeypatch.setattr(evaluate, "examine", lambda *_, **__: pytest.fail("evaluated again"))
    with pytest.raises(BaseException, match="evaluated again"):  # of two prompts' games nothing is there
        main(["compare", "base", "small", "evaluate.prompts=[box]"])


def test_other_rules_are_refused_unless_forced(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "base", "small"]) == 0
    one, two = sorted(Path("work/compare/evaluations").iterdir())
    shutil.copytree(one, "elsewhere")
    path = Path("elsewhere/protocol.json")
    protocol = json.loads(path.read_text())
    protocol["versions"]["torch"] = "1.0"
    path.write_text(json.dumps(protocol))
    capsys.readouterr()
    before = (OUT / "table.csv").read_bytes()
    assert main(["compare", str(two), "elsewhere"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"by different rules: versions: torch: {torch.__version__.split('+')[0]}" in said
    assert "and 1.0. --force compares them" in said
    assert (OUT / "table.csv").read_bytes() == before
    assert main(["compare", str(two), "elsewhere", "--force"]) == 0
    assert "versions: torch" in (OUT / "index.html").read_text()
    assert "- other rules, compared by force: " in (OUT / "table.md").read_text()


@pytest.mark.slow
def test_seeds_are_one_model(bench: Path, weights: tuple[Path, Path]) -> None:
    names = []
    for number, prompt in enumerate((0.2, 0.4, 0.6)):
        names.append(str(tuned_weights(weights, Path(f"seed{number}.safetensors"), prompt=prompt)))
    assert main(["compare", "base", "--seeds", "sum", *names]) == 0
    together = pd.read_csv(OUT / "table.csv", index_col="model")
    assert list(together.index) == ["base", "sum"]
    page = (OUT / "index.html").read_text()
    assert "sum 3" in page  # each seed has its own scatter and verdict
    assert "3 seeds: seed0.safetensors, seed1.safetensors, seed2.safetensors" in page
    assert main(["compare", "base", *names]) == 0
    apart = pd.read_csv(OUT / "table.csv", index_col="model")
    assert together.loc["sum", "all mIoU@1"] == pytest.approx(apart.iloc[1:]["all mIoU@1"].mean(), abs=0.02)


def test_registry_versions_and_runs(bench: Path, tracking_uri: str) -> None:
    config = load_config()
    fingerprint = sha256_file(SMALL)
    with start_run(uri=tracking_uri, experiment="sum", name="small", params={}, tags={}) as run:
        model_id = run.log_model(SMALL, name="sum-ft-small", fingerprint=fingerprint, params={})
    registry = Registry(tracking_uri)
    version = registry.register(model_id, run_id=run.id, name="sum-ft-small", tags={})
    registry.point("sum-ft-small", alias="champion", number=version.number)
    for word in ("sum-ft-small@champion", "models:/sum-ft-small@champion", "sum-ft-small/1", run.id):
        found = resolve(word, config=config, work=Path("work/compare"))
        assert found.weights is not None
        assert sha256_file(found.weights) == fingerprint
        assert found.backbone == "tiny"
        assert found.label == (run.id[:8] if word == run.id else word.removeprefix("models:/"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["base"], "wants at least two models, the first of them the base, got base"),
        (["base", "smal"], "'smal' names no model. Known: base, a budget, NAME@ALIAS .*budgets: large, medium, small"),
        (["base", "data"], "data is a folder, but not one that evaluate wrote"),
        (["base", "base"], "'base' stands there twice"),
    ],
)
def test_words_that_name_nothing(bench: Path, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        groups_of(words, [], config=load_config(), work=Path("work"))


def test_seeds_want_a_label_and_two_models(bench: Path) -> None:
    with pytest.raises(ConfigError, match="--seeds base: wants a label and at least two models"):
        groups_of(["base"], [["base", "small"]], config=load_config(), work=Path("work"))


def test_what_is_not_there_is_named(bench: Path) -> None:
    with pytest.raises(MissingInput, match="dvc repro finetune@large"):
        resolve("large", config=load_config(), work=Path("work"))


def test_meta_s_files_tell_their_backbone(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {name: BACKBONES[name].build().state_dict() for name in ("vit_b", "vit_l", "vit_h")}
    key = "image_encoder.patch_embed.proj.weight"
    for name, state in shapes.items():
        torch.save({key: torch.zeros(state[key].shape)}, tmp_path / "sam.pth")
        assert backbone_of(tmp_path / "sam.pth") == name
    torch.save({key: torch.zeros(7, 3)}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="neither weights that this project wrote nor SAM's vit_b, vit_l, vit_h"):
        backbone_of(tmp_path / "sam.pth")


def test_the_folder_of_something_else_is_left_alone(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    assert main(["compare", "base", "small", "--out", "mine"]) == 2
    assert "something else lies there" in capsys.readouterr().err
    assert Path("mine/thesis.txt").read_text() == "years of work"
    assert not Path("work/compare").exists()  # before anything is evaluated


def test_files_of_one_name_are_told_apart_by_their_folders(bench: Path, weights: tuple[Path, Path]) -> None:
    for place in ("a", "b"):
        tuned_weights(weights, Path(place) / "best.safetensors", prompt=0.5)
    words = ["base", "a/best.safetensors", "b/best.safetensors"]
    assert list(groups_of(words, [], config=load_config(), work=Path("work"))) == ["base", "a/best", "b/best"]


@pytest.mark.slow
def test_rounds_without_the_first_and_a_gate_that_wants_more(bench: Path) -> None:
    """Automatic generation has one round only; the gate looks at the rounds that were played."""
    wide = ["evaluate.rounds=2", "evaluate.report_rounds=[2]", "evaluate.everything=true", "register.rounds=[1,2]"]
    assert main(["compare", "base", "small", *wide]) == 0
    page = (OUT / "index.html").read_text()
    assert "automatic masks" in page
    assert main(["compare", "base", "small", "register.rounds=[1]"]) == 0
    assert "the gate would say: refused" in (OUT / "table.md").read_text()


@pytest.mark.slow
def test_rounds_that_differ_are_refused_at_once_and_cut_by_force(
    bench: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["compare", "base", "small"]) == 0
    shutil.copytree(sorted(Path("work/compare/evaluations").iterdir())[0], "short")
    longer = ["evaluate.rounds=3", "evaluate.report_rounds=[1,3]", "evaluate.prompts=[point]", "--out", "other"]
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "examine", lambda *_, **__: pytest.fail("evaluated before it was refused"))
        assert main(["compare", "small", "short", *longer]) == 1
    assert "rounds: 3 and 1" in " ".join(capsys.readouterr().err.split())
    assert main(["compare", "small", "short", *longer, "--force"]) == 0
    page = Path("other/index.html").read_text()
    assert "Not by the same rules:" in page
    assert "models side by side" in page
    assert list(pd.read_csv("other/table.csv").filter(like="mIoU@3")) == []


def test_a_wrong_name_is_no_server_that_is_away(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "base", "sum/99"]) == 1
    assert "has no models:/sum/99" in capsys.readouterr().err


@pytest.mark.slow
def test_a_delta_is_compared_as_the_model_it_belongs_to(
    bench: Path, weights: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_segmenter(weights[0], backbone="tiny")
    model = select_parts(model, spec=ArchSpec("adapter"), task_prompt=True, seed=0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad and "image_encoder" in name:
                value.add_(0.05)
    folder = Path("mine")
    folder.mkdir()
    save_both(folder, model, base=sha256_file(weights[0]), about={})
    (folder / "model.safetensors").rename("whole.safetensors")
    assert main(["compare", "base", "mine", "whole.safetensors"]) == 0
    found = [read_rows(folder, reader="test") for folder in Path("work/compare/evaluations").glob("*")]
    ious = {rows["model"].iloc[0]: rows["iou"].tolist() for rows in found}
    assert ious["mine"] == ious["whole"] != ious["base"]


def test_a_delta_without_its_base_stops_compare_before_anything_is_evaluated(bench: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(named_weights, "SHIPPED", Path("nowhere"))
    save_delta(Path("delta.safetensors"), load_segmenter(SMALL, backbone="tiny"), base="0" * 64, about={})
    assert main(["compare", "base", "delta.safetensors"]) == 1
    told = capsys.readouterr().err.replace("\n", " ")
    assert "wants its base, the weights with sha256 000" in told
    assert "base.safetensors, ., nowhere, checkpoints" in told  # model.checkpoint first
    assert not list(Path("work").glob("*/*"))
