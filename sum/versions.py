"""The manifest as a git revision had it: `dvc.lock` of git names it, DVC's cache or remote holds it.

git and DVC are run as commands; nothing in the working folder changes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from sum.dvc_command import run_dvc
from sum.errors import DataError, MissingInput

MANIFEST = Path("data/manifest")
WORKSPACE = "workspace"  # the word for what lies in the folder now
_CONFIG = '[remote "sum-cache"]\n    url = {cache}\n'


def manifest_of(revision: str, *, into: Path) -> Path:
    """The folder of the manifest of a git revision, fetched to a folder below `into`; WORKSPACE: the present one.

    Raises DataError when there is no such revision, when it has no manifest in its dvc.lock, or when neither the cache
    nor the remote of DVC has it.
    """
    if revision == WORKSPACE:
        if not MANIFEST.is_dir():
            raise MissingInput(MANIFEST, reader="data-diff", maker="ingest")
        return MANIFEST
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if commit is None:
        raise DataError(f"'{revision}' is no git revision of this project; wanted a commit, tag, branch or {WORKSPACE}")
    commit = commit.strip()
    digest = locked(commit)
    if digest is None:
        raise DataError(
            f"revision '{revision}': its dvc.lock has no {MANIFEST}. Commit dvc.lock after `dvc repro ingest`"
        )
    folder = into / digest.removesuffix(".dir")
    if not folder.exists():
        _fetch(commit, folder, revision=revision)
    return folder


def locked(commit: str) -> str | None:
    """DVC's md5 of the manifest in `dvc.lock` of a commit; None where there is none."""
    text = _git("show", f"{commit}:./dvc.lock")
    tree = yaml.safe_load(text) if text else None
    stages = tree.get("stages", {}) if isinstance(tree, dict) else {}
    outs = [out for stage in stages.values() for out in stage.get("outs", ())]
    return next((str(out["md5"]) for out in outs if out.get("path") == MANIFEST.as_posix() and "md5" in out), None)


def _fetch(commit: str, folder: Path, *, revision: str) -> None:
    """Copy the manifest of a commit out of DVC's local cache, or of its default remote."""
    config = folder.with_suffix(".config")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(_CONFIG.format(cache=run_dvc("cache", "dir").stdout.strip()), encoding="utf-8")
    remote = run_dvc("config", "core.remote").stdout.strip()  # that commit may not know it
    get = ("get", ".", MANIFEST.as_posix(), "--rev", commit, "--out", str(folder))
    done = run_dvc(*get, "--config", str(config.absolute()), "--remote", "sum-cache")
    if done.returncode and remote:
        done = run_dvc(*get, "--remote", remote)
    if not done.returncode:
        return
    told = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    why = told[0] if told else "DVC gives no reason"
    raise DataError(
        f"revision '{revision}': neither DVC's cache nor its remote has {MANIFEST} ({why}). "
        "Run `dvc push` where it was made, or `dvc pull` with that revision checked out"
    )


def _git(*words: str) -> str | None:
    """What git says; None when it refuses."""
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None
