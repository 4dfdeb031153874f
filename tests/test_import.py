"""Importing Limbeck and asking for help load nothing heavy; the public names are all there."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import limbeck

HEAVY = {"torch", "torchvision", "timm", "mmengine", "mmcv", "mmdet", "mmseg", "mmdet3d", "numpy", "scipy", "sklearn"}
HEAVY |= {"plotly", "ray", "pandas", "PIL", "cv2", "safetensors", "huggingface_hub", "torchmetrics", "spconv", "onnx"}


def loaded(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after running `code`."""
    code += "\nimport sys; print('loaded', *sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_import_limbeck_loads_nothing_heavy():
    assert loaded("import limbeck; limbeck.UserError; dir(limbeck)") & HEAVY == set()


def test_import_limbeck_loads_no_third_party_module_at_all():
    assert loaded("import limbeck") & {"pydantic", "typer", "rich", "jinja2"} == set()


def test_import_of_the_command_line_loads_nothing_heavy():
    assert loaded("import limbeck.cli.app") & HEAVY == set()


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["train", "--help"], ["bench", "run", "--help"]], ids=" ".join
)
def test_help_loads_nothing_heavy(args):
    code = f"""
from limbeck.cli import main
try:
    main({args!r})
except SystemExit as stop:
    assert not stop.code, stop.code
"""
    assert loaded(code) & HEAVY == set()


@pytest.mark.parametrize("module", ["config", "record", "suite", "weights", "sources", "output", "schedule", "events"])
def test_data_modules_of_the_engine_import_without_torch(module):
    assert loaded(f"import limbeck.engine.{module}") & {"torch", "mmengine", "numpy"} == set()


def test_all_is_sorted_and_complete():
    source = ast.parse(Path(limbeck.__file__).read_text(encoding="utf-8"))
    typed = {
        alias.asname or alias.name
        for block in source.body
        if isinstance(block, ast.If)
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert limbeck.__all__ == sorted(limbeck.__all__)
    assert set(limbeck.__all__) == typed | {"__version__"} == set(limbeck._LAZY) | {"__version__"}
    assert dir(limbeck) == limbeck.__all__


@pytest.mark.parametrize("name", limbeck.__all__)
def test_every_public_name_is_there(name):
    assert getattr(limbeck, name) is not None


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'students'"):
        limbeck.students  # noqa: B018
