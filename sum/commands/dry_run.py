"""`python -m sum ingest --dry-run PATH`: what a folder, export or bucket prefix holds, and the params entry for it."""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from sum.data.detect import LOOKED_FOR, detect
from sum.data.listing import UNREADABLE, Candidate, Found
from sum.data.sources import Note, Problem, Sample
from sum.errors import ConfigError, DataError, StorageError

SHOWN = 3  # files, problems or categories named
OPEN = "CHOOSE"  # in the place of a task that nobody has said yet
WORDS = "(?i:y|n|yes|no|on|off|true|false|null)"  # that are no text in YAML
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")  # that YAML takes escaped only
STAND_IN = "entity"  # the task with which an entry without one is read


@dataclass(slots=True)
class Reading:
    """What the real reader made of one candidate."""

    candidate: Candidate
    name: str
    entry: dict[str, Any]
    hw: list[tuple[int, int]] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    categories: dict[str, int] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    refused: str = ""

    @property
    def useful(self) -> bool:
        """Whether it gives anything to train on or to label."""
        return bool(self.hw) and (bool(self.areas) or self.candidate.kind == "images" or self.unlabelled)

    @property
    def unlabelled(self) -> bool:
        """Whether it is read for its photos alone."""
        return bool(self.entry["split"] == "unlabelled")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What stands behind `ingest --dry-run`."""
    parser.add_argument("path", metavar="PATH", help="a folder, an annotation file or s3://bucket/prefix")
    add_options(parser)
    parser.add_argument("--name", default="", help="of the data set; otherwise the folder's")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What the dry run and `add` have in common."""
    parser.add_argument("--task", choices=("salient", "entity", "part"), help="what the masks mean")
    parser.add_argument("--split", choices=("train", "test", "unlabelled"), help="otherwise as the files' names say")
    parser.add_argument("--licence", default="unknown", help="SPDX name or a phrase")
    parser.add_argument("--limit", type=int, help="read only so many images of each part")


def run(options: argparse.Namespace) -> str:
    """See `explain`."""
    if options.split == "unlabelled" and options.task:
        raise ConfigError("--split unlabelled has no task: photos without masks; leave out --task")
    found = detect(options.path)
    return explain(options.path, found, read_best(found, options, name=options.name))


def read_best(found: Found, options: argparse.Namespace, *, name: str) -> list[Reading]:
    """The parts of the best reading that gives something, all others after it as they were found, not read.

    Raises StorageError when the files cannot be reached.
    """
    groups = defaultdict[tuple[str, int], list[Candidate]](list)
    for candidate in found.candidates:
        groups[candidate.reading].append(candidate)
    done = list[Reading]()
    bare = ("images",) if len(groups) > 1 else ()  # photos beside annotations that are broken are not meant as bare
    for group in groups.values():
        if group[0].kind in bare if options.split != "unlabelled" else group[0].kind not in ("images", "sa1b"):
            continue
        readings = [_read(candidate, _named(candidate, group, name), options) for candidate in _parts(group)]
        if any(reading.useful for reading in readings):
            return [*readings, *done]
        done += readings
    return done


def _parts(group: list[Candidate]) -> list[Candidate]:
    """Those that are parts of one set: one of each split; of a set without splits the first."""
    parts = dict[str, Candidate]()
    for candidate in group:
        parts.setdefault(candidate.part, candidate)
    return list(parts.values())


def _named(candidate: Candidate, group: list[Candidate], name: str) -> str:
    name = name or re.sub(r"\W+", "_", PurePosixPath(candidate.root.rstrip("/")).name).strip("_") or "mine"
    if re.fullmatch(rf"\d.*|{WORDS}", name):  # YAML would read a number, or yes or no
        name = f"set_{name}"
    parts = _parts(group)
    if len(parts) == 1 or candidate is next((part for part in parts if part.split == "train"), None):
        return name
    splits = [part.split for part in parts]
    return f"{name}_{candidate.split if splits.count(candidate.split) == 1 else candidate.part}"


def entry_of(candidate: Candidate, options: argparse.Namespace) -> dict[str, Any]:
    """The keys of `datasets.NAME`, those that are at their default left out; without a task it is OPEN."""
    from sum.data_settings import DatasetConfig

    entry: dict[str, Any] = {"kind": candidate.kind, "root": candidate.root}
    default = {name: item.default for name, item in DatasetConfig.__dataclass_fields__.items()}
    entry |= {key: value for key, value in candidate.keys.items() if default.get(key) != value}
    entry["split"] = "unlabelled" if candidate.kind == "images" else options.split or candidate.split
    if entry["split"] != "unlabelled":
        entry["task"] = options.task or OPEN
    return entry | {"licence": options.licence}


def _read(candidate: Candidate, name: str, options: argparse.Namespace) -> Reading:
    """Read a candidate by the reader of its kind; what the reader refuses as a whole is the reading's refusal."""
    from pydantic import TypeAdapter, ValidationError

    from sum.data_settings import DatasetConfig
    from sum.datasets import read_set

    reading = Reading(candidate, name, entry_of(candidate, options))
    keys = reading.entry | ({"task": STAND_IN} if reading.entry.get("task") == OPEN else {})
    try:
        config = TypeAdapter(DatasetConfig).validate_python(keys)
        if options.limit:
            config = replace(config, select=replace(config.select, images=options.limit))
        items, _ = read_set(name, config)
        for found in items:
            for item in found:
                _take(reading, item)
    except ValidationError as error:
        reading.refused = error.errors()[0]["msg"].removeprefix("Value error, ")
    except (DataError, ConfigError) as error:
        reading.refused = str(error)
    except StorageError as error:
        if not reading.hw:
            raise
        reading.refused = str(error)
    return reading


def _take(reading: Reading, item: Sample | Problem | Note) -> None:
    if isinstance(item, Sample):
        reading.hw.append((item.image.height, item.image.width))
        for mask in item.masks:
            reading.areas.append(mask.area)
            reading.categories[mask.category] = reading.categories.get(mask.category, 0) + 1
    elif isinstance(item, Note):
        reading.notes.setdefault(item.reason, []).append(item.file)
    else:
        reading.problems.append(item)


def explain(path: str, found: Found, readings: list[Reading]) -> str:
    """The report: what was understood, what else it may be, what to paste."""
    good = [reading for reading in readings if reading.useful]
    lines = list[str]()
    for reading in good:
        lines += [*_told(reading), ""]
    lost = unread(found, good)
    lines += [f"NOT READ: {reason}" for reason in lost[:SHOWN]]
    lines += [f"NOT READ: {len(lost)} files in all"] if len(lost) > SHOWN else []
    lines += [""] if lost else []
    read = {id(reading.candidate) for reading in readings}
    others = [reading for reading in readings if not reading.useful]
    rest = [candidate for candidate in found.candidates if id(candidate) not in read]
    refused = [(kind, reason) for kind, reason in found.refused if kind != UNREADABLE]
    if others or rest or refused:
        lines.append("Other readings, not taken:" if good else "What was tried:")
        lines += [f"  {reading.candidate.kind}: {_why_not(reading)}" for reading in others]
        lines += [f"  {candidate.kind}: {candidate.why}; keys {_flow(candidate.keys)}" for candidate in rest]
        lines += [f"  {kind}: {reason}" for kind, reason in refused[: 4 * SHOWN]]
        lines.append("")
    if not good:
        return "\n".join([f"{path}: nothing that can be used was found. Looked for {LOOKED_FOR}.", *lines])
    return "\n".join([*lines, *paste(good), ""])


def unread(found: Found, good: Sequence[Reading]) -> list[str]:
    """Annotation files that cannot be read and that nobody tells of; with a file a photo the reader itself does."""
    return [] if any(reading.candidate.kind in ("labelme", "sa1b") for reading in good) else found.unreadable


def _why_not(reading: Reading) -> str:
    if reading.refused:
        return f"{reading.candidate.why}; refused: {reading.refused}"
    first = f", the first: {reading.problems[0].file}: {reading.problems[0].reason}" if reading.problems else ""
    return f"{reading.candidate.why}; but no image with a mask, {len(reading.problems)} problem(s){first}"


def paste(readings: list[Reading]) -> list[str]:
    """The lines for `datasets:` of params.yaml."""
    lines = ["For `datasets:` of params.yaml:", "", "datasets:"]
    lines += [f"  {line(reading)}" for reading in readings]
    if any(reading.entry.get("task") == OPEN for reading in readings):
        lines += ["", f"The task is not in the files: put salient, entity or part for {OPEN}, or say --task."]
    return lines


def line(reading: Reading) -> str:
    """`NAME: {kind: ...}`, one line of YAML."""
    mark = "   # <- task: salient, entity or part" if reading.entry.get("task") == OPEN else ""
    return f"{reading.name}: {_flow(reading.entry)}{mark}"


def _flow(entry: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {_scalar(value)}" for key, value in entry.items()) + "}"


def _scalar(value: Any) -> str:
    """A value as YAML: bare where that is safe, as JSON otherwise."""
    bare = isinstance(value, str) and re.fullmatch(r"[A-Za-z_./][\w./:-]*[\w./]|[A-Za-z_./]", value)
    if bare and not re.fullmatch(rf"{WORDS}|\.(inf|nan|[\d_].*)|.*:", value, re.IGNORECASE):
        return str(value)
    return _UNPRINTABLE.sub(lambda fit: f"\\u{ord(fit[0]):04x}", json.dumps(value, ensure_ascii=False))


def _told(reading: Reading) -> list[str]:
    """What one part holds."""
    candidate, areas = reading.candidate, sorted(reading.areas)
    lines = [f"{reading.name}: kind {candidate.kind}: {candidate.why}"]
    lines.append(f"  images      {len(reading.hw):,}, split {reading.entry['split']}")
    heights, widths = zip(*reading.hw, strict=True)
    lines.append(f"  sizes       height {_spread(heights)}, width {_spread(widths)} (min/median/max px)")
    if areas and set(reading.categories) == {STAND_IN} and reading.entry.get("task") == OPEN:
        lines.append(f"  masks       {len(areas):,}, area {_spread(areas)} (min/median/max px)")
    elif areas:
        lines.append(f"  masks       {len(areas):,}, area {_spread(areas)} (min/median/max px)")
        ranked = sorted(reading.categories.items(), key=lambda row: (-row[1], row[0]))
        named = ", ".join(f"{name or '(none)'} {count}" for name, count in ranked[: 4 * SHOWN])
        lines.append(f"  categories  {len(ranked)}: {named}{', ...' if len(ranked) > 4 * SHOWN else ''}")
    for reason, files in sorted(reading.notes.items()):
        lines.append(f"  told        {len(files)} x {reason}: {', '.join(files[:SHOWN])}{_more(files)}")
    if reading.refused:
        lines.append(f"  stopped     {reading.refused}")
    lines += [f"  problem     {one.file}: {one.reason} ({one.remedy})" for one in reading.problems[:SHOWN]]
    if len(reading.problems) > SHOWN:
        lines.append(f"  problems    {len(reading.problems)} in all; ingest.on_bad: skip goes on without them")
    return lines


def _more(files: list[str]) -> str:
    return ", ..." if len(files) > SHOWN else ""


def _spread(values: Any) -> str:
    return f"{min(values)}/{statistics.median_low(values)}/{max(values)}"
