"""`python -m sum data-diff` in a git project with a real DVC cache and remote, and a real MLflow database."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from sum.cli import main
from sum.config import load_config
from sum.data.records import ImageRecord, MaskRecord, read_manifest, write_manifest
from sum.errors import DataError, MissingInput
from sum.tracking import start_run
from sum.versions import manifest_of

PROJECT = Path(__file__).parents[2]
STAGE = {"ingest": {"cmd": "cp -r source data/manifest", "deps": ["source"], "outs": ["data/manifest"]}}
pytestmark = pytest.mark.slow  # each dvc takes a second or two
WHO = ("-c", "user.name=test", "-c", "user.email=test@localhost")


def command(*words: str) -> None:
    done = subprocess.run([*words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def dvc(*words: str) -> None:
    command(sys.executable, "-m", "dvc", *words)


def image(name: str, *, sha256: str = "ab") -> ImageRecord:
    dataset, task = name.partition("/")[0], "salient" if name.startswith("demo_salient") else "part"
    return ImageRecord(name, dataset, f"{name}.png", sha256, 4, 4, task, "train", "CC0-1.0")


def masks(of: ImageRecord, *rles: str) -> list[MaskRecord]:
    return [
        MaskRecord(f"{of.image_id}#{n}", of.image_id, of.dataset, of.task, of.split, 1, 0, 0, 0, 0, rle, "", "")
        for n, rle in enumerate(rles)
    ]


def write_version(folder: Path, *, second: bool) -> None:
    a, b, c = image("demo_salient/a"), image("demo_salient/b"), image("demo_part/c")
    images, found = [a, b, c], [*masks(a, "x"), *masks(b, "y"), *masks(c, "z")]
    if second:
        a2, d = image("demo_salient/a", sha256="cd"), image("demo_salient/d")
        images, found = [a2, c, d], [*masks(a2, "w"), *masks(c, "z"), *masks(d, "v")]
    shutil.rmtree(folder, ignore_errors=True)
    write_manifest(folder, images, found)


@pytest.fixture(scope="module")
def versioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two commits, tagged v1 and v2, whose manifests lie in DVC's cache; HEAD~2 is before any."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        command("git", "init", "--quiet")
        Path("data").mkdir()
        shutil.copytree(PROJECT / ".dvc", ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
        Path(".gitignore").write_text("/data/manifest\n/mlflow.db\n")
        shutil.copy(PROJECT / "params.yaml", ".")
        dvc("remote", "add", "--quiet", "--default", "store", str(folder.parent / "store"))  # nothing is pushed
        command("git", "add", ".")
        command("git", *WHO, "commit", "--quiet", "--message", "bare")
        for tag in ("v1", "v2"):
            write_version(Path("source"), second=tag == "v2")
            Path("dvc.yaml").write_text(yaml.safe_dump({"stages": STAGE}))
            dvc("repro", "--quiet")
            command("git", "add", ".")
            command("git", *WHO, "commit", "--quiet", "--message", tag)
            command("git", "tag", tag)
    return folder


@pytest.fixture
def project(versioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that a test may spoil."""
    shutil.copytree(versioned, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def train(uri: str, *, budget: str, folder: Path) -> str:
    """A run as stage finetune begins it, on the manifest in `folder`."""
    config = load_config()
    entry = config.budgets[budget]
    data = read_manifest(folder, reader="test").select(datasets={*entry.human, *entry.unlabelled}).fingerprint
    facts = {"budget": budget, "method": "sum", "base": "0", "data": data}
    run = start_run(uri=uri, experiment="sum", name=f"ft-{budget}", params=asdict(config) | facts, tags=facts)
    run.finish()
    return run.id


def test_two_revisions_and_the_models_of_either(
    project: Path,
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    old, new = (manifest_of(tag, into=tmp_path / "fetched") for tag in ("v1", "v2"))
    first = train(tracking_uri, budget="small", folder=old)
    second = train(tracking_uri, budget="small", folder=new)
    write_manifest(tmp_path / "third", [image("demo_salient/z")], [])
    train(tracking_uri, budget="small", folder=tmp_path / "third")  # of neither
    assert main(["data-diff", "v1", "v2", "--json", "out.json"]) == 0
    printed = capsys.readouterr().out
    (row,) = [line.split() for line in printed.splitlines() if line.strip().startswith("demo_salient")]
    assert row[:8] == ["demo_salient", "salient", "1", "1", "1", "1", "1", "1"]
    assert "demo_part" not in printed
    assert "1 of 2 sets changed" in printed
    found = {line.split()[0]: line.split()[-1] for line in printed.splitlines() if "small" in line}
    assert found == {first: "v1", second: "v2"}
    tree = json.loads(Path("out.json").read_text())
    assert {(row["run_id"], *row["on"]) for row in tree["models"]} == {(first, "v1"), (second, "v2")}
    (changed,) = [entry for entry in tree["sets"] if entry["dataset"] == "demo_salient"]
    assert changed["first"] == {
        "added": ["demo_salient/d"], "removed": ["demo_salient/b"], "altered": ["demo_salient/a"]
    }  # fmt: skip


def test_a_training_on_an_unchanged_part_is_of_both(
    project: Path,
    tracking_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The budget's sets did not change, though another set did."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    text = Path("params.yaml").read_text().replace("small: {human: [demo_salient]", "small: {human: [demo_part]")
    Path("params.yaml").write_text(text)
    run = train(tracking_uri, budget="small", folder=manifest_of("v1", into=tmp_path / "fetched"))
    assert main(["data-diff", "v1", "v2"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if run in line]
    assert line.rstrip().endswith("v1 and v2")


def test_the_workspace_is_what_lies_there_now_and_stays(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("data/manifest")
    write_version(Path("data/manifest"), second=False)
    before = {path: path.read_bytes() for path in Path("data").rglob("*.parquet")}
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    assert main(["data-diff", "v1", "workspace"]) == 0
    assert "0 of 2 sets changed" in capsys.readouterr().out
    assert main(["data-diff", "HEAD", "workspace"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 2 sets changed" in printed
    assert "models: MLflow knows none" in printed
    assert not Path("mlflow.db").exists()  # asking makes no database
    assert {path: path.read_bytes() for path in Path("data").rglob("*.parquet")} == before
    assert subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout == status


def test_the_remote_helps_when_the_cache_is_gone_and_else_the_error_says_what_to_do(
    versioned: Path, project: Path, tmp_path: Path
) -> None:
    found = manifest_of("v1", into=tmp_path / "one")  # not pushed: from the cache, though there is a default remote
    dvc("push", "--quiet", "--all-commits")
    shutil.rmtree(".dvc/cache")
    again = manifest_of("v1", into=tmp_path / "two")
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {
        path.name: path.read_bytes() for path in again.iterdir()
    }
    shutil.rmtree(versioned.parent / "store")
    with pytest.raises(
        DataError, match="revision 'v1': neither DVC's cache nor its remote has data/manifest"
    ) as caught:
        manifest_of("v1", into=tmp_path / "three")
    assert "no reason" not in str(caught.value)
    assert "dvc push" in str(caught.value)


def test_a_revision_that_is_none_or_has_no_manifest_is_named(project: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'v3' is no git revision"):
        manifest_of("v3", into=tmp_path)
    with pytest.raises(DataError, match="'--all' is no git revision"):
        manifest_of("--all", into=tmp_path)
    with pytest.raises(DataError, match=r"revision 'v1~1': its dvc\.lock has no data/manifest"):
        manifest_of("v1~1", into=tmp_path)
    shutil.rmtree("data/manifest")
    with pytest.raises(MissingInput, match="dvc repro ingest"):
        manifest_of("workspace", into=tmp_path)
