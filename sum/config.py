"""params.yaml plus overrides -> a checked, frozen Config. The only module that knows Hydra."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from sum.errors import ConfigError, MissingInput
from sum.settings import Config

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def load_config(overrides: Sequence[str] = (), *, root: Path | None = None) -> Config:
    """Compose `root/params.yaml` (default: the working directory) with Hydra overrides such as
    `finetune.optim.steps=10`.

    Raises ConfigError with the path of every unknown key, wrong type or impossible value; MissingInput without a
    params.yaml.
    """
    folder = (root or Path.cwd()).resolve()
    said = [word.lstrip("+~").partition("=")[0] for word in overrides]
    return check_config(compose(overrides, folder=folder), source="params.yaml", overridden=said)


def compose(overrides: Sequence[str], *, folder: Path) -> dict[str, Any]:
    """The raw tree of `folder/params.yaml` with the overrides applied."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = folder / "params.yaml"
    if not path.is_file():
        raise MissingInput(path, reader="every stage", maker="git checkout")
    words = [f"++{word}" if word.partition("=")[0] in _OPTIONAL else word for word in overrides]  # set, there or not
    try:
        with initialize_config_dir(str(folder), version_base="1.3"):
            tree = OmegaConf.to_container(hydra_compose("params", overrides=words), resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        unknown = re.match(r"Could not override '([^']+)'", str(error))
        if unknown and overrides:  # Hydra's advice, to append the key with +, cannot help: unknown keys are refused
            raise ConfigError(_unknown_key(unknown.group(1), compose((), folder=folder))) from error
        raise ConfigError(f"params.yaml: {' '.join(str(error).split())}") from error
    return {str(key): value for key, value in dict(tree).items()}  # type: ignore[arg-type]  # a mapping: top level of a YAML file


def _unknown_key(key: str, tree: dict[str, Any]) -> str:
    """What to say of an override whose key neither params.yaml nor the settings have; tree: its content."""
    known, todo = sorted(_OPTIONAL), [("", tree)]
    while todo:
        above, branch = todo.pop()
        for name, value in branch.items():
            known.append(f"{above}{name}")
            todo += [(f"{above}{name}.", value)] if isinstance(value, dict) else []
    near = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"command line: unknown key '{key}'.{hint} Known keys are those of params.yaml and docs/training.md."


def _with_default(kind: Any, above: str = "") -> Iterator[str]:
    """The dotted keys below a settings class that params.yaml may leave out."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from _with_default(hints[field.name], f"{above}{field.name}.")
        elif field.default is not MISSING or field.default_factory is not MISSING:
            yield f"{above}{field.name}"


_OPTIONAL = frozenset(_with_default(Config))


@cache
def _adapter() -> TypeAdapter[Config]:
    """Made once: it takes longer than all that it is asked."""
    from pydantic import TypeAdapter

    return TypeAdapter(Config)


def check_config(tree: dict[str, Any], *, source: str, overridden: Sequence[str] = ()) -> Config:
    """A raw tree -> Config; source: the file named in the message; overridden: keys that the command line gave."""
    from pydantic import ValidationError

    try:
        return _adapter().validate_python(tree)
    except ValidationError as error:
        rows = []
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"]) or "(top level)"
            found = "" if item["type"] in ("missing", "value_error") else f", found {item['input']!r}"
            given = any(f"{where}.".startswith(f"{key}.") or f"{key}.".startswith(f"{where}.") for key in overridden)
            origin = "command line" if given else source
            rows.append(f"{origin}: {where}: {item['msg'].removeprefix('Value error, ')}{found}")
        raise ConfigError("\n".join(rows)) from error
