"""Stage ingest on folders written here: the manifest of good ones, and what it says about bad ones."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sum.config import load_config
from sum.data.layouts import LAYOUTS
from sum.data.records import decode_mask, read_manifest
from sum.data_settings import KEYS
from sum.errors import DataError, MissingInput, StorageError
from sum.settings import Config, DatasetConfig, IngestConfig
from sum.stages import ingest

ROOT = Path(__file__).parents[2]
MASKS = np.random.default_rng(5).random((4, 20, 30)) < 0.5


@pytest.fixture(scope="module")
def settings() -> Config:
    return replace(load_config(root=ROOT), budgets={})


@pytest.fixture
def config(settings: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Two sets in a project of their own: four salient pairs, three photos without masks."""
    monkeypatch.chdir(tmp_path)
    for index in range(4):
        photo(Path(f"raw/salient/images/deep/{index}.jpg"), seed=index)
        grey(Path(f"raw/salient/masks/deep/{index}.png"), MASKS[index] * 255)
    for index in range(3):
        photo(Path(f"raw/free/images/{index}.jpg"), seed=10 + index)
    return replace(
        settings,
        datasets={
            "salient": DatasetConfig(
                kind="raster", root="raw/salient", split="train", task="salient", licence="CC0-1.0"
            ),
            "free": DatasetConfig(kind="images", root="raw/free", split="unlabelled", licence="CC0-1.0"),
        },
    )


def photo(path: Path, *, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)


def grey(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def spoil(config: Config) -> None:
    """One of each kind of trouble in the set `salient`; pair 3 stays sound."""
    Path("raw/salient/images/deep/0.jpg").write_bytes(b"no photo")
    grey(Path("raw/salient/masks/deep/1.png"), MASKS[1] * 0)
    Path("raw/salient/masks/deep/2.png").unlink()
    assert config.ingest.on_bad == "fail"


def test_manifest_of_good_folders(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert ingest.run(config) == Path("data/manifest")
    manifest = read_manifest(ingest.OUT, reader="test")
    assert [image.image_id for image in manifest.images if image.dataset == "free"] == ["free/0", "free/1", "free/2"]
    assert len(manifest.images) == 7
    for index, mask in enumerate(manifest.masks):
        assert (mask.image_id, mask.source) == (f"salient/deep/{index}", f"raw/salient/masks/deep/{index}.png")
        assert np.array_equal(decode_mask(mask.rle, height=20, width=30), MASKS[index])
    summary = json.loads(Path("data/manifest/summary.json").read_text())
    free = {"images": 3, "masks": 0, "notes": {}, "split": "unlabelled", "task": "unspecified"}
    assert summary["datasets"]["free"] == free | {"skipped": 0, "skipped_by_reason": {}}
    assert summary["skipped"] == 0
    assert (summary["images"], summary["masks"], summary["fingerprint"]) == (7, 4, manifest.fingerprint)
    assert json.loads(Path("data/manifest/skipped.json").read_text()) == []
    assert "salient" in capsys.readouterr().out


def test_the_same_folders_give_the_same_bytes(config: Config) -> None:
    content = []
    for _ in range(2):
        ingest.run(config)
        content.append({path.name: path.read_bytes() for path in ingest.OUT.iterdir()})
    assert content[0] == content[1]
    assert sorted(content[0]) == ["images.parquet", "masks.parquet", "skipped.json", "summary.json"]


def test_bad_files_stop_the_stage_and_the_old_manifest_stays(config: Config) -> None:
    ingest.run(config)
    old = read_manifest(ingest.OUT, reader="test").fingerprint
    spoil(config)
    with pytest.raises(DataError) as caught:
        ingest.run(config)
    message = str(caught.value)
    assert "3 file(s) or annotation(s) cannot be used; all are listed in work/ingest/problems.json" in message
    for want in ("images/deep/0.jpg: not a readable", "masks/deep/1.png: the mask is empty", "masks/deep/2: no image"):
        assert f"salient: raw/salient/{want}" in message
    assert "ingest.on_bad: skip" in message
    assert len(json.loads(ingest.PROBLEMS.read_text())) == 3
    assert read_manifest(ingest.OUT, reader="test").fingerprint == old
    assert [path.name for path in Path("data").iterdir()] == ["manifest"]


def test_a_message_stays_short(config: Config) -> None:
    for index in range(13):
        photo(Path(f"raw/salient/images/more/{index}.jpg"), seed=index)
    with pytest.raises(DataError, match=r"13 file\(s\)") as caught:
        ingest.run(config)
    assert str(caught.value).count("raw/salient/masks/more/") == 10
    assert "and 3 more" in str(caught.value)


def test_bad_files_are_skipped_and_listed_on_request(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(config)
    grey(Path("raw/salient/masks/deep/3.png"), MASKS[3])  # 0 and 1
    ingest.run(replace(config, ingest=IngestConfig(on_bad="skip")))
    manifest = read_manifest(ingest.OUT, reader="test")
    assert [mask.image_id for mask in manifest.masks] == ["salient/deep/3"]
    assert manifest.masks[0].area == MASKS[3].sum()
    skipped = json.loads(Path("data/manifest/skipped.json").read_text())
    assert (
        f"{len(skipped)} file(s) or annotation(s) were left out; {ingest.PROBLEMS} names each"
        in capsys.readouterr().out
    )
    assert {row["dataset"] for row in skipped} == {"salient"}
    assert all(row["file"] and row["reason"] and row["remedy"] for row in skipped)
    salient = json.loads(Path("data/manifest/summary.json").read_text())["datasets"]["salient"]
    assert (salient["images"], salient["masks"], salient["skipped"]) == (1, 1, 3)
    assert sum(salient["skipped_by_reason"].values()) == 3
    assert salient["skipped_by_reason"]["not a readable image"] == 1
    assert salient["notes"] == {"the mask's pixels are only 0 and 1: read as background and object": 1}


def test_a_set_of_which_nothing_is_left_is_an_error(config: Config) -> None:
    for path in Path("raw/free/images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"data set 'free' .* gave no usable image"):
        ingest.run(replace(config, ingest=IngestConfig(on_bad="skip")))
    assert not ingest.OUT.exists()


def test_all_missing_roots_are_told_at_once_with_what_helps(config: Config) -> None:
    demo = DatasetConfig(kind="images", root="data/raw/demo/unlabelled", split="unlabelled", licence="x")
    own = replace(demo, root="raw/own")
    with pytest.raises(DataError) as caught:
        ingest.run(replace(config, datasets=config.datasets | {"demo": demo, "own": own}))
    first, second = str(caught.value).splitlines()
    assert first == "data set 'demo': data/raw/demo/unlabelled does not exist. Run `dvc repro demo`."
    assert "data set 'own': raw/own does not exist." in second
    assert "datasets.own.root" in second


@pytest.mark.parametrize(
    ("kind", "change", "want"),
    [
        ("raster", {"masks": "mask"}, r"/mask does not exist.* \(now images: images, masks: mask, all below"),
        ("raster", {"names": "list.txt"}, r"/list\.txt does not exist.*names: list\.txt"),
        ("raster", {"images": "photos"}, r"/photos does not exist.*images: photos"),
        (
            "coco",
            {},
            r"/annotations\.json does not exist.*now images: images, annotations: annotations\.json, all below",
        ),
        ("images", {"images": "photos", "split": "unlabelled"}, r"/photos does not exist.*now images: photos,"),
    ],
)
def test_a_mistyped_place_is_no_server_that_is_away(config: Config, kind: str, change: dict, want: str) -> None:
    """DataError is exit 1: a flow does not try it again, as it does with StorageError's 75."""
    with pytest.raises(DataError, match=want) as caught:
        ingest.run(replace(config, datasets={"mine": replace(config.datasets["salient"], kind=kind, **change)}))
    assert str(caught.value).startswith("data set 'mine': raw/salient/")
    assert "Mend datasets.mine in params.yaml" in str(caught.value)


def test_every_layout_is_a_kind_of_the_settings() -> None:
    assert set(LAYOUTS) <= set(KEYS)


def test_a_full_disk_leaves_the_old_manifest(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest.run(config)
    before = {path.name: path.read_bytes() for path in ingest.OUT.iterdir()}
    photo(Path("raw/free/images/new.jpg"), seed=99)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"no space left on the disk, [\d.]+ MB free"):
        ingest.run(config)
    assert {path.name: path.read_bytes() for path in ingest.OUT.iterdir()} == before
    assert [path.name for path in Path("data").iterdir()] == ["manifest"]


def test_an_absent_bucket_server_is_no_bad_file(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_MAX_ATTEMPTS": "1"}
    for name, value in (settings | {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}).items():
        monkeypatch.setenv(name, value)
    free = replace(config.datasets["free"], root="s3://photos/free")
    skip = IngestConfig(on_bad="skip")
    with pytest.raises(StorageError, match="no answer from the S3 server"):
        ingest.run(replace(config, datasets={"free": free}, ingest=skip))


@pytest.mark.slow
def test_a_bucket_gives_what_the_folder_gives(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        settings = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
        for name, value in (settings | {"AWS_ENDPOINT_URL_S3": f"http://{host}:{port}"}).items():
            monkeypatch.setenv(name, value)
        client = boto3.session.Session().client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="photos")
        for path in Path("raw").rglob("*.*"):
            client.put_object(Bucket="photos", Key=path.as_posix(), Body=path.read_bytes())
        ingest.run(config)
        local = read_manifest(ingest.OUT, reader="test")
        remote = {name: replace(entry, root=f"s3://photos/{entry.root}") for name, entry in config.datasets.items()}
        ingest.run(replace(config, datasets=remote))
    finally:
        server.stop()
    found = read_manifest(ingest.OUT, reader="test")
    assert [replace(image, path=f"s3://photos/{image.path}") for image in local.images] == found.images
    assert [replace(mask, source=f"s3://photos/{mask.source}") for mask in local.masks] == found.masks


def test_nobody_reads_a_manifest_that_is_not_there(config: Config) -> None:
    with pytest.raises(MissingInput, match="dvc repro ingest"):
        read_manifest(ingest.OUT, reader="validate")
    assert config.datasets


def test_files_that_dvc_protects_are_to_be_unprotected_first(config: Config) -> None:
    """Only these: the same set elsewhere is not DVC's."""
    spoil(config)
    with pytest.raises(DataError) as caught:
        ingest.run(config)
    assert "dvc unprotect" not in str(caught.value)
    Path("data/raw").mkdir(parents=True)
    Path("raw/salient").rename("data/raw/salient")
    Path("data/raw/salient.dvc").write_text("outs:\n- path: salient\n")
    moved = replace(config.datasets["salient"], root="data/raw/salient")
    with pytest.raises(DataError) as caught:
        ingest.run(replace(config, datasets=config.datasets | {"salient": moved}))
    told = str(caught.value).splitlines()[-1]
    assert "`dvc unprotect data/raw/salient` first, then `dvc add data/raw/salient`" in told
