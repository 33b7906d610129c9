"""`python -m sum add NAME PATH`: the dry run, then the data set under DVC and into params.yaml, or nothing at all.

A folder below data/raw/NAME is added where it lies; one elsewhere is linked or copied there by DVC; of a bucket only
what it holds is recorded (`dvc import-url --no-download`), its bytes stay there. `python -m sum remove NAME` undoes it.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import yaml

from sum.commands.dry_run import WORDS, Reading, add_options, explain, line, read_best, unread
from sum.commands.use import PARAMS, check
from sum.data.detect import detect
from sum.data.listing import Found
from sum.dvc_command import run_dvc
from sum.errors import ConfigError, DataError, StorageError
from sum.storage import S3, write_atomic

RAW = Path("data/raw")
MARK = "# added by `python -m sum add {name}`"
PLACE = "# <-"  # ends the line of an entry in examples/own.yaml that `add` takes the place of
HIDDEN = "#- "  # before such a line while it is out of use
COPY = "meta:\n  copied: {md5}\n"  # in the .dvc file: what `add` put into data/raw/NAME; the user's files lie elsewhere
LINKS = "reflink,hardlink,copy"  # the cache and the folder share their bytes where the file system can


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind `add`."""
    parser.add_argument("name", metavar="NAME", help="of the data set in params.yaml")
    parser.add_argument("path", metavar="PATH", help="a folder or s3://bucket/prefix")
    add_options(parser)
    parser.add_argument("--unlabelled", action="store_true", help="use the photos alone")


def run(options: argparse.Namespace) -> str:
    """See the module. Raises ConfigError, DataError and StorageError, and then has changed nothing."""
    name, path = options.name, options.path.rstrip("/")
    if not re.fullmatch(rf"(?!{WORDS}$)[A-Za-z][A-Za-z0-9_]*", name):
        reason = "wants letters, digits and _ only, a letter first, and is no word as 'on' or 'null'"
        raise ConfigError(f"add: the name '{name}' {reason}")
    if bool(options.task) == options.unlabelled:
        raise ConfigError("add: say what the masks mean, --task salient, entity or part, or --unlabelled for photos")
    options.split = "unlabelled" if options.unlabelled else options.split
    if not path.startswith(S3) and not Path(path).is_dir():
        raise ConfigError(f"add: {path} is no folder; wanted one with photos (and masks), or s3://bucket/prefix")
    found = detect(path)
    root = path if path.startswith(S3) else (RAW / name).as_posix()
    readings = [reading_at(reading, root) for reading in read_best(found, options, name=name)]
    good = [reading for reading in readings if reading.useful]
    said = explain(path, found, readings)
    why = _refusal(found, good, task=options.task)
    if why is not None:
        raise DataError(f"add: nothing was added{why}.\n{said}")
    before = PARAMS.read_bytes()
    after = insert(before, name, [line(reading) for reading in good])
    check(after, source=str(PARAMS))
    with tracked(name, path):
        write_atomic(PARAMS, after)
    twice = relink(RAW / name) if Path(path).resolve() == (RAW / name).resolve() else ""
    names = [reading.name for reading in good]
    done = f"{', '.join(names)}: written to params.yaml as above, and under DVC as {RAW / name}.dvc."
    undo = undoing(name, [new for new in names if new not in (yaml.safe_load(before)["datasets"] or ())], after)
    return "\n".join([said, f"{done} {undo}{twice}", *unused(good, after), *troubled(good, after), ""])


def _refusal(found: Found, good: Sequence[Reading], *, task: str | None) -> str | None:
    """Why what was found is not what was meant; None when it may be."""
    if not good:
        return ""
    lost = unread(found, good)
    if lost:
        return f": {len(lost)} file(s) that may be of the set cannot be read; mend or remove them"
    if task and not any(reading.areas for reading in good):
        return f": --task {task} says that there are masks and none was found; photos alone are added by --unlabelled"
    return None


def reading_at(reading: Reading, root: str) -> Reading:
    """With the place where the data lies from now on."""
    return replace(reading, entry=reading.entry | {"root": root})


def users(params: bytes, names: Collection[str]) -> list[str]:
    """The budgets of params.yaml that use one of the data sets, as `budgets.NAME`."""
    budgets = yaml.safe_load(params).get("budgets") or {}
    lists = {name: {*entry.get("human", ()), *entry.get("unlabelled", ())} for name, entry in budgets.items()}
    return [f"budgets.{name}" for name, used in lists.items() if used & {*names}]


def undoing(name: str, new: list[str], params: bytes) -> str:
    """What `remove` will do. new: the data sets that take no placeholder's place."""
    if using := users(params, new):
        return f"Take it out of {', '.join(using)} before `python -m sum remove {name}`."
    limit = ", as long as no budget uses it" if new else "; the placeholder comes back"
    return f"`python -m sum remove {name}` undoes it{limit}."


def unused(readings: list[Reading], params: bytes) -> list[str]:
    """A line for each that no budget uses. Only budgets say what is trained on; test sets are always evaluated."""
    roles = {"train": "human", "unlabelled": "unlabelled"}
    return [
        f"no budget uses '{reading.name}' yet: add it to budgets.NAME.{roles[reading.entry['split']]} in params.yaml"
        for reading in readings
        if reading.entry["split"] in roles and not users(params, [reading.name])
    ]


def troubled(readings: list[Reading], params: bytes) -> list[str]:
    """What stage ingest will do about the problems; [] without any."""
    if any(reading.refused for reading in readings):
        return ["Reading did not come to its end, see `stopped` above: stage ingest will stop there too; mend it."]
    if not (count := sum(len(reading.problems) for reading in readings)):
        return []
    if (yaml.safe_load(params).get("ingest") or {}).get("on_bad") == "skip":
        return [f"{count} problem(s): stage ingest goes on without them, as ingest.on_bad is skip."]
    return [f"{count} problem(s): stage ingest will stop there; mend them or set ingest.on_bad: skip in params.yaml."]


def lines_of(params: bytes) -> list[str]:
    """The lines with their ends; str.splitlines would also split at what is part of a text in YAML, such as U+2028."""
    return re.split(r"(?<=\n)", params.decode())


def insert(params: bytes, name: str, rows: list[str]) -> bytes:
    """params.yaml with lines at the end of `datasets:`; every other byte stays.

    Placeholders (PLACE) named NAME or NAME_... are hidden as remarks. Raises ConfigError when there is no such block,
    or an entry of one of these names.
    """
    lines = lines_of(params)
    first = next((at for at, text in enumerate(lines) if re.match(r"datasets:\s*(#.*)?$", text)), None)
    if first is None:
        raise ConfigError("params.yaml: no line 'datasets:' with one data set a line below it; add the entry by hand")
    last, indent = first, "  "
    for at in range(first + 1, len(lines)):
        if re.match(r"\S", lines[at]) and not lines[at].startswith("#"):
            break
        entry = re.match(r"( +)([^\s#:][^:]*):", lines[at])
        if entry and lines[at].rstrip().endswith(PLACE) and (entry[2] == name or entry[2].startswith(f"{name}_")):
            lines[at], entry = f"{entry[1]}{HIDDEN}{lines[at].lstrip()}", None
            last = at
        if entry:
            indent = entry[1] if last == first else indent
            last = at
        elif re.match(r" +\S", lines[at]) and not lines[at].lstrip().startswith("#"):
            last = at
        if entry and entry[2].strip("'\"") in {row.split(":")[0] for row in rows}:
            raise ConfigError(f"params.yaml: there is a data set '{entry[2]}' already; take another name")
    end = "\r\n" if lines[first].endswith("\r\n") else "\n"
    new = [f"{indent}{row}   {MARK.format(name=name)}{end}" for row in rows]
    if not lines[last].endswith("\n"):
        raise ConfigError("params.yaml: its last line has no end; add one")
    return "".join([*lines[: last + 1], *new, *lines[last + 1 :]]).encode()


@contextmanager
def tracked(name: str, path: str) -> Iterator[None]:
    """Put `path` under DVC as data/raw/NAME; when that or the block fails or is stopped, it is taken back."""
    target = RAW / name
    file = target.with_name(f"{name}.dvc")
    if file.exists():
        raise ConfigError(f"add: {file} exists already; take another name, or `python -m sum remove {name}`")
    inside = not path.startswith(S3) and Path(path).resolve() == target.resolve()
    if target.exists() and not inside:
        raise ConfigError(f"add: {target} exists already and is not {path}; take another name")
    RAW.mkdir(parents=True, exist_ok=True)
    ignore = RAW / ".gitignore"
    kept = ignore.read_bytes() if ignore.is_file() else None
    try:
        if path.startswith(S3):
            dvc("import-url", "--no-download", path, str(target), *s3_options())
        elif inside:
            with linked():
                dvc("add", str(target))
        else:
            with linked():
                dvc("add", "--out", str(target), str(Path(path).resolve()))
            md5 = yaml.safe_load(file.read_bytes())["outs"][0]["md5"]
            write_atomic(file, file.read_bytes() + COPY.format(md5=md5).encode())
        yield
    except BaseException:  # Ctrl-C as well
        file.unlink(missing_ok=True)
        restore(ignore, kept)
        if not inside:
            shutil.rmtree(target, ignore_errors=True)
        raise


def relink(folder: Path) -> str:
    """Let a folder that was added where it lay share its bytes with DVC's cache; '' or what to say when it cannot.

    Only when all else is done: whatever stops it half way, `dvc checkout` brings the missing files back.
    """
    try:
        with linked():
            dvc("checkout", "--relink", f"{folder}.dvc")
    except StorageError as error:
        return f" Its bytes are stored twice, here and in DVC's cache: {error}"
    return ""


def restore(path: Path, content: bytes | None) -> None:
    """The bytes that were there before; None: no file."""
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write_atomic(path, content)


def s3_options() -> list[str]:
    """The endpoint of the environment, which DVC does not read by itself."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return ["--fs-config", f"endpointurl={endpoint}"] if endpoint else []


@contextmanager
def linked() -> Iterator[None]:
    """While the block runs DVC may link instead of copy; .dvc/config.local is as before afterwards."""
    local = Path(".dvc/config.local")
    kept = local.read_bytes() if local.is_file() else None
    try:
        dvc("config", "--local", "cache.type", LINKS)
        yield
    finally:
        restore(local, kept)


def dvc(*words: str) -> str:
    """As `run_dvc`; returns what it said. Raises StorageError with its last lines."""
    done = run_dvc(*words)
    if done.returncode:
        tail = " ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
        raise StorageError(f"`dvc {' '.join(words)}` failed: {tail}")
    return done.stdout
