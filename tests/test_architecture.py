"""The house rules that a machine can check: who imports whom, and what a bare --help may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
FOLDERS = ("sum", "flows", "tests", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (PROJECT / folder).rglob("*.py"))
HEAVY = {
    "accelerate", "boto3", "cv2", "great_expectations", "hydra", "matplotlib", "mlflow", "numpy", "omegaconf", "pandas",
    "prefect", "pyarrow", "pydantic", "scipy", "torch", "yaml",
}  # fmt: skip


def test_import_contracts_hold():
    """The contracts of pyproject.toml; a broken one is printed with file and line."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nobody_imports_the_name_sum():
    """`import sum` and `import sum.x` hide the builtin of that name."""
    assert not [
        f"{path.relative_to(PROJECT)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import)
        for name in node.names
        if name.name.split(".")[0] == "sum" and not name.asname
    ]


def test_files_and_functions_are_short():
    """House 1.11: 300 lines a file, 50 a function."""
    long = []
    for path in SOURCES:
        if path.is_relative_to(PROJECT / "tests"):
            continue
        text = path.read_text()
        if len(text.splitlines()) > 300:
            long.append(f"{path.relative_to(PROJECT)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 50:
                    long.append(f"{path.relative_to(PROJECT)}:{node.lineno}: {node.name} is {length} lines")
    assert not long, "\n".join(long)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom sum.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stderr.split())
    assert "pseudo_label" in done.stdout


@pytest.mark.slow
def test_stages_are_found_without_heavy_tools():
    """Torch may load with a stage; what only some paths need may not."""
    code = "import sys\nfrom sum.stages import ingest, register\nfrom sum import predict, serving\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert not {"prefect", "great_expectations", "mlflow", "matplotlib", "accelerate"} & set(done.stdout.split())
