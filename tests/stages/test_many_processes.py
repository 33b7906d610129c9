"""The labelling stages in several processes, killed here and there, over a folder and a bucket: the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sum.models.checkpoint import fingerprint, load_segmenter
from sum.models.refiner import Refiner, save_refiner
from sum.stages import pseudo_label, uncertainty
from tests.s3_store import BUCKET, bucket
from tests.stages.label_world import ROOT, WEIGHTS, configure, contents, kill, make_project

LABELS, MAPS = Path("data/pseudo_labels"), Path("data/uncertainty")
STAGES = ("pseudo_label", "uncertainty")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a refiner, labelled by one process; without its work folder."""
    folder = tmp_path_factory.mktemp("whole")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = configure(folder)
        pseudo_label.run(config)
        save_refiner(
            Path("data/refiner/model.safetensors"),
            Refiner(load_segmenter(WEIGHTS, backbone="tiny")),
            origin=fingerprint(WEIGHTS),
            about={},
        )
        uncertainty.run(config)
    shutil.rmtree(folder / "work")
    return folder


@pytest.fixture
def project(whole: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / LABELS)
    shutil.rmtree(folder / MAPS)
    return folder


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


def torchrun(project: Path, stage: str, *, processes: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=0"]
    done = subprocess.run(
        [*command, "-m", "sum", stage], cwd=project, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("processes", [2, 3])
def test_torchrun_gives_the_bytes_of_one_process(project: Path, whole: Path, processes: int) -> None:
    for stage in STAGES:
        torchrun(project, stage, processes=processes)
    for folder in (LABELS, MAPS):
        assert contents(project / folder) == contents(whole / folder)


def test_machines_that_share_a_bucket(project: Path, whole: Path, tmp_path: Path) -> None:
    """Two projects that see no common folder; one of them has RANK 1, as the second machine of a torchrun."""
    helper = tmp_path / "helper"
    shutil.copytree(project, helper)
    with bucket(tmp_path) as variables:
        shared = variables | {"SUM_SHARE": f"s3://{BUCKET}/run"}
        for stage in STAGES:
            if stage == "uncertainty":  # the second machine needs the labels to make maps of
                shutil.copytree(project / LABELS, helper / LABELS)
            command = [sys.executable, "-m", "sum", stage]
            second = subprocess.Popen(command, cwd=helper, env=environment(**shared, RANK="1", WORLD_SIZE="2"))
            first = subprocess.run(command, cwd=project, env=environment(**shared), check=False, capture_output=True)
            assert first.returncode == 0, first.stderr
            assert second.wait(timeout=120) == 0
    for folder in (LABELS, MAPS):
        assert contents(project / folder) == contents(whole / folder)


def test_what_was_made_alone_is_shared_later_and_only_process_0_fetches_it(
    project: Path, whole: Path, tmp_path: Path
) -> None:
    """Finished shards reach the bucket even when nothing is left to make; another machine then makes none."""
    second, third = tmp_path / "second", tmp_path / "third"
    shutil.copytree(project, second)
    shutil.copytree(project, third)

    def label(folder: Path, **variables: str) -> None:
        command = [sys.executable, "-m", "sum", "pseudo_label"]
        done = subprocess.run(
            command, cwd=folder, env=environment(**variables), check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    label(project)
    with bucket(tmp_path) as variables:
        shared = variables | {"SUM_SHARE": f"s3://{BUCKET}/run"}
        label(project, **shared)
        label(second, **shared, RANK="1", WORLD_SIZE="2")
        assert not list(second.glob("work/pseudo_label/*/*.arrow"))
        (third / "data/raw/u/0.png").unlink()  # who would label again could not
        label(third, **shared)
    for folder in (project, third):
        assert contents(folder / LABELS) == contents(whole / LABELS)


def test_killed_workers_and_then_two_that_end(project: Path, whole: Path) -> None:
    """Each is killed within a shard; benchmarks/kills.py does it at fifty random moments with two at a time."""
    for call in (1, 4):
        kill(project, stage="pseudo_label", function="label", call=call)
    torchrun(project, "pseudo_label", processes=2)
    assert contents(project / LABELS) == contents(whole / LABELS)
    shutil.rmtree(project / "work/uncertainty")  # made in passing: here the stage is to do it
    for call in (1, 4):
        kill(project, stage="uncertainty", function="embeddings_of", call=call)
    torchrun(project, "uncertainty", processes=2)
    assert contents(project / MAPS) == contents(whole / MAPS)
