"""Stage demo: draw the built-in data sets into data/raw/demo."""

from __future__ import annotations

from pathlib import Path

from sum.data.demo_files import write_demo
from sum.settings import Config
from sum.storage import replace_folder, write_atomic

OUT = Path("data/raw/demo")


def run(config: Config) -> Path:
    """Write the scenes of `demo.scenes`, or, when nobody wants them, a folder that says why it is empty; return it."""
    scenes = {name: count for name, count in config.demo.scenes.items() if count > 0}
    read = any(Path(entry.root).is_relative_to(OUT) for entry in config.datasets.values())
    if scenes and read:
        write_demo(OUT, seeds=config.demo.seeds, scenes=scenes, side=config.demo.side)
        return OUT
    why = (
        f"no data set of params.yaml has its root below {OUT}"
        if scenes
        else "demo.scenes in params.yaml asks for no scene"
    )
    with replace_folder(OUT) as folder:
        write_atomic(folder / "README.txt", f"Empty: {why}.\n".encode())
    return OUT
