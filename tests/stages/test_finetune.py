"""The finetune stage on a small world: what a method trains on, certainty in the batch, a kill, what is published."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sum import tracking
from sum.data.labels import LabelStore
from sum.data.records import read_manifest, write_manifest
from sum.data.samples import PseudoImages, enlarge
from sum.errors import CheckpointError, ConfigError, DataError, MissingInput, TrackingError, ValidationFailed
from sum.methods import METHODS
from sum.models.checkpoint import load_segmenter
from sum.models.segmenter import TASKS
from sum.registry import Registry, download
from sum.stages import check_labels, finetune, pseudo_label, refine, uncertainty
from sum.storage import sha256_file, write_json
from sum.training_record import begin, skipped_items, tell_replaced
from tests.stages.label_world import WEIGHTS, kill
from tests.stages.tuning_world import OPTIM, as_if_uninterrupted, settings

pytestmark = pytest.mark.filterwarnings(  # of great_expectations' own imports
    "ignore:module 'sre_(constants|parse)' is deprecated:DeprecationWarning"
)


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "data/models/small/model.safetensors")


QUICK = {"sum"}  # the others differ in options that tests/test_methods.py shows


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in sorted(METHODS)]
)
def test_every_method_trains_and_is_published(project: Path, tracking_uri: str, method: str) -> None:
    options = METHODS[method]
    more = {} if options.consistency == "off" else {"optim": OPTIM | {"ema": 0.9}}
    config = settings(
        project, tracking_uri, method=method, maps="discrepancy_teacher" if options.maps else "confidence", **more
    )
    if options.maps:  # not the template's
        uncertainty.run(config)
        check_labels.run(config)
    for used, folder in ((options.pseudo_labels, "data/pseudo_labels"), (options.reads_maps, "data/uncertainty")):
        if not used:
            shutil.rmtree(folder)
    assert finetune.run(config, budget="small") == Path("data/models/small")
    found, base = trained(project), load_file(WEIGHTS)
    assert not torch.equal(found["mask_decoder.iou_token.weight"], base["mask_decoder.iou_token.weight"])
    used = sorted(found["task_prompt"].abs().amax(1).nonzero().flatten().tolist())
    assert used == ([] if options.task_prompt == "off" else [TASKS["part"]])  # row 0 is never trained
    names = sorted(path.name for path in Path("data/models/small").iterdir())
    assert names == ["delta.safetensors", "history.csv", "model.json", "model.safetensors", "run.json", "summary.json"]
    assert len(Path("data/models/small/history.csv").read_text().splitlines()) == 1 + OPTIM["steps"]
    about = json.loads(Path("data/models/small/run.json").read_text())
    assert about["model_id"]
    tags = tracking.connect(tracking_uri).get_run(about["run_id"]).data.tags
    assert (tags["method"], tags["doubt"]) == (method, DOUBT[method])


DOUBT = {  # where u comes from when the maps are made by confidence, or by discrepancy_teacher where they must be
    **dict.fromkeys(("vanilla", "human_only", "mask_refinement", "augseg", "augseg_box"), "none"),
    **dict.fromkeys((name for name in METHODS if name.startswith(("sum", "u2pl"))), "confidence"),
    "sum_discrepancy": "discrepancy_teacher",
}


def test_maps_of_another_method_are_refused(project: Path, tracking_uri: str) -> None:
    """At load when params.yaml says so, and by the maps themselves when they are older than it."""
    for method, words in (("sum_discrepancy", "discrepancy_teacher or _decoders"), ("mask_refinement", "makes none")):
        with pytest.raises(ConfigError, match=rf"finetune\.method {method}.*{words}"):
            settings(project, tracking_uri, method=method)
        config = settings(project, tracking_uri, method=method, maps="discrepancy_teacher")
        with pytest.raises(ConfigError, match=rf"'{method}' wants .*found 'confidence'.*`dvc repro check_labels`"):
            finetune.run(config, budget="small")


@pytest.mark.slow
def test_a_model_tuned_by_adapters_is_a_plain_one(
    project: Path, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(project, tracking_uri, arch="lora", lora={"rank": 2})
    write_json(Path("data/models/small/run.json"), {"run_id": "of_before"})
    with caplog.at_level("INFO"):
        finetune.run(config, budget="small")
    said = [record.getMessage() for record in caplog.records]
    assert "data/models/small: replaces the model of MLflow run of_before" in said
    (table,) = [words for words in said if "small trains:" in words]
    assert "layer  5: learning rate x 1.0000, weight decay 0.1" in table  # tiny has four blocks; no decay by layer here
    base, model = load_file(WEIGHTS), load_segmenter("data/models/small/model.safetensors", backbone="tiny")
    changed = {name for name, value in model.sam.state_dict().items() if not torch.equal(value, base[name])}
    assert {name.split(".")[0] for name in changed} == {"image_encoder", "prompt_encoder", "mask_decoder"}
    encoder = {name for name in changed if name.startswith("image_encoder")}
    assert encoder == {f"image_encoder.blocks.3.{k}.{layer}.weight" for k in (0, 2) for layer in ("qkv", "out")}
    own = [*model.sam.mask_decoder.parameters(), *model.sam.prompt_encoder.parameters()]
    decoder = sum(value.numel() for value in own)
    adapters = 2 * 2 * ((192 + 3 * 192) + (192 + 192))  # blocks, rank, qkv and out
    summary = json.loads(Path("data/models/small/summary.json").read_text())
    assert summary["trained"] == decoder + adapters + model.task_prompt.numel()


def test_a_model_with_more_than_sam_is_no_base(project: Path, tracking_uri: str) -> None:
    config = settings(project, tracking_uri, arch="hq", method="human_only")
    finetune.run(config, budget="small")
    config = replace(
        config, model=replace(config.model, checkpoint=str(Path("data/models/small") / "model.safetensors"))
    )
    for run in (
        lambda: finetune.run(config, budget="small"),
        lambda: pseudo_label.run(config),
        lambda: refine.run(config),
    ):
        with pytest.raises(CheckpointError, match=r"'hq' and is no plain SAM.*Set model.checkpoint"):
            run()


def test_training_ends_early_by_photos_that_it_does_not_see(project: Path, tracking_uri: str) -> None:
    manifest = read_manifest(Path("data/manifest"), reader="test")
    first, mask = next(image for image in manifest.images if image.dataset == "h"), manifest.masks[0]
    images, masks = list(manifest.images), list(manifest.masks)
    for number in range(1, 4):  # other photos of other content, with the same mask
        path = Path(f"data/raw/u/{number}.png")
        photo = Image.open(path).resize((64, 48))
        photo.save(f"data/raw/h{number}.png")
        name = f"h/{number}"
        digest = sha256_file(Path(f"data/raw/h{number}.png"))
        images.append(replace(first, image_id=name, path=f"data/raw/h{number}.png", sha256=digest))
        masks.append(replace(mask, mask_id=f"{name}#0", image_id=name))
    write_manifest(Path("data/manifest"), images, masks)
    config = settings(
        project, tracking_uri, early_stop={"patience": 1, "held_out": 0.5}, optim=OPTIM | {"lr": 1e-12, "steps": 9}
    )
    finetune.run(config, budget="small")
    summary = json.loads(Path("data/models/small/summary.json").read_text())
    about = json.loads(Path("data/models/small/run.json").read_text())
    points = tracking.connect(tracking_uri).get_metric_history(about["run_id"], "held_out_iou")
    figures = {point.step: point.value for point in points}
    best = max(figures, key=lambda step: (figures[step], -step))
    assert max(figures) == summary["steps"] == best + 1 < 9  # nothing is learnt at this rate
    assert summary["early_stop"] == {"best_step": best, "held_out_iou": round(figures[best], 6)}
    with pytest.raises(DataError, match=r"early_stop\.held_out: 1e-06 of 4 human images"):
        finetune.run(settings(project, tracking_uri, early_stop={"patience": 1, "held_out": 1e-6}), budget="small")


def test_certainty_of_the_batch_is_one_minus_the_map(project: Path) -> None:
    manifest = read_manifest(Path("data/manifest"), reader="test").select(datasets=["u"], split="unlabelled")
    with_maps = LabelStore(Path("data/pseudo_labels"), Path("data/uncertainty"))
    without = LabelStore(Path("data/pseudo_labels"), None)
    for store, plain in ((with_maps, False), (without, True)):
        images = PseudoImages(manifest, store, side=128, loss_side=64)
        sample = images.sample(0, masks=100, rng=np.random.default_rng(0))
        height, width = (side // 2 for side in sample.hw.tolist())
        image, padding = sample.certainty[:, :height, :width], sample.certainty.clone()
        padding[:, :height, :width] = 0
        assert padding.abs().max() == 0
        assert sample.task == 0
        if plain:
            assert image.min() == 1
        else:  # L is 64 here, so nothing is enlarged: the set of maps is the store's
            wanted = 1 - with_maps.uncertainty(manifest.images[0].image_id)[:, :height, :width] / 255
            assert image.numpy().sum() == pytest.approx(wanted.sum(), rel=1e-5)
            assert image.min() < 0.9


def test_enlarged_maps_are_torchs() -> None:
    maps = np.random.default_rng(0).random((3, 16, 16), dtype=np.float32)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], (64, 64), mode="bilinear")[0]
    torch.testing.assert_close(enlarge(maps, side=64), wanted, atol=1e-5, rtol=0)


@pytest.mark.slow  # imports torch and MLflow once more
def test_a_killed_training_goes_on_in_the_same_mlflow_run_to_the_same_weights(
    project: Path, tracking_uri: str, tmp_path: Path
) -> None:
    """With every option that draws or keeps something of its own."""
    options = {
        "augment": {"flip": 0.5, "scale": [0.5, 1.5]},
        "accumulate": 2,
        "arch": "lora",
        "lora": {"decoder": True},
    }
    config = settings(project, tracking_uri, **options)
    whole = tmp_path / "whole"
    shutil.copytree(project, whole)
    kill(project, stage="finetune", function="train_in_parts", call=3, budget="small")
    assert not Path("data/models").exists()
    (note,) = Path("work/finetune").glob("*/mlflow.json")
    pace = {"optim": OPTIM | {"workers": 1, "checkpoint_every": 2, "max_skipped": 4}, "recompute_encoder": True}
    finetune.run(settings(project, tracking_uri, **options, **pace), budget="small")
    run = json.loads(Path("data/models/small/run.json").read_text())
    assert run["run_id"] == json.loads(note.read_text())["run_id"]
    as_if_uninterrupted(whole, config)


@pytest.mark.slow
def test_a_published_model_is_loaded_from_mlflow_with_what_its_card_says(
    project: Path, tracking_uri: str, tmp_path: Path
) -> None:
    finetune.run(settings(project, tracking_uri), budget="small")
    about = json.loads(Path("data/models/small/run.json").read_text())
    registry = Registry(tracking_uri)
    version = registry.register(about["model_id"], run_id=about["run_id"], name="sum-ft-small", tags={})
    registry.point("sum-ft-small", alias="champion", number=version.number)
    weights = download(tracking_uri, "sum-ft-small", alias="champion", folder=tmp_path / "fetched")
    card = json.loads((weights.parent / "model.json").read_text())
    model = load_segmenter(weights, backbone=card["backbone"])
    assert torch.equal(model.task_prompt, trained(project)["task_prompt"])
    assert (card["weights"], card["sha256"], card["side"]) == (weights.name, about["fingerprint"], model.side)
    assert (card["tasks"], card["budget"], card["method"], card["human"]) == (TASKS, "small", "sum", ["h"])


def curve(uri: str) -> list[int]:
    """Steps of the loss that MLflow has of the one run begun here."""
    (note,) = Path("work/finetune").glob("*/mlflow.json")
    history = tracking.connect(uri).get_metric_history(json.loads(note.read_text())["run_id"], "loss")
    return [point.step for point in history]


@pytest.mark.slow  # imports torch and MLflow once more
def test_a_checkpoint_brings_its_metrics_to_mlflow(project: Path, tracking_uri: str) -> None:
    config = settings(project, tracking_uri)
    kill(project, stage="finetune", function="publish", call=1, budget="small")  # at the end, before Run.finish
    assert curve(tracking_uri) == [0, 1, 2]
    finetune.run(config, budget="small")
    assert curve(tracking_uri) == [0, 1, 2]


@pytest.mark.slow
def test_a_curve_that_mlflow_missed_is_sent_by_the_next_run(
    project: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(run: tracking.Run) -> None:
        raise TrackingError("connection refused")

    config = settings(project, tracking_uri)
    with monkeypatch.context() as patch:
        patch.setattr(tracking.Run, "flush", away)  # a server that fell ill after the run was opened
        with pytest.raises(TrackingError, match="connection refused"):
            finetune.run(config, budget="small")
    assert curve(tracking_uri) == []
    finetune.run(config, budget="small")
    assert curve(tracking_uri) == [0, 1, 2]


def test_what_is_missing_names_the_stage(project: Path, tracking_uri: str) -> None:
    config = settings(project, tracking_uri)
    shutil.rmtree("data/uncertainty")
    with pytest.raises(MissingInput, match="dvc repro uncertainty"):
        finetune.run(config, budget="small")
    with pytest.raises(ConfigError, match="Did you mean 'small'"):
        finetune.run(config, budget="smal")


@pytest.mark.parametrize(
    ("skipped", "words", "count"),
    [({"h": 3, "u": 0, "else": 9}, "h: 3", 3), ({"h": 1, "u": 2}, "h: 1; u: 2", 3), ({}, "none", 0)],
)
def test_the_run_tells_the_terms_of_its_licences_and_what_was_skipped(
    skipped: dict[str, int], words: str, count: int, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = settings(tmp_path, tracking_uri)
    config = replace(plain, datasets=plain.datasets | {"h": replace(plain.datasets["h"], licence="CC-BY-NC-4.0")})
    summary = {"datasets": {name: {"skipped": number} for name, number in skipped.items()}}
    write_json(Path("data/manifest/summary.json"), summary)
    entry = config.budgets["small"]
    record = begin(
        tmp_path / "work" / "mlflow.json",
        params=asdict(config),
        facts={"budget": "small"},
        files={},
        licences={name: config.datasets[name].licence for name in (*entry.human, *entry.unlabelled)},
        skipped=skipped_items(Path("data/manifest")),
        machine={},
    )
    record.finish()
    found = tracking.connect(tracking_uri).get_run(record.id).data
    assert found.tags["licence_terms"] == "non-commercial: h; attribution: u"
    assert found.tags["licences"] == "CC-BY-NC-4.0; MIT"
    assert found.tags["skipped"] == words  # of the sets of this budget
    assert found.metrics["skipped_items"] == count


@pytest.mark.parametrize("text", ["[]", "{}", '{"run_id": "own"}', "no JSON", "\udcff", None])
def test_nothing_is_said_of_a_folder_that_holds_no_other_run(
    text: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if text is not None:
        (tmp_path / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    with caplog.at_level("INFO"):
        tell_replaced(tmp_path, by="own")
    assert not caplog.records


def test_labels_that_failed_their_check_are_not_learnt_from(project: Path, tracking_uri: str) -> None:
    """The real check of a raised threshold: the labels are not what the settings promise any more."""
    config = settings(project, tracking_uri)
    promised = replace(config, pseudo_label=replace(config.pseudo_label, stability_thresh=1.0, max_area_share=0.01))
    with pytest.raises(ValidationFailed, match=r"area is at most 0.01 of the image: \d+ row") as failure:
        check_labels.run(promised)
    assert "see work/checks/labels/index.html" in str(failure.value)
    assert Path("work/checks/labels/index.html").is_file()
    assert json.loads(check_labels.OUT.read_text())["success"] is False
    with pytest.raises(ValidationFailed, match="`dvc repro check_labels`"):
        finetune.run(config, budget="small")
    check_labels.OUT.unlink()
    with pytest.raises(MissingInput, match="stage 'check_labels' writes it"):
        finetune.run(config, budget="small")
