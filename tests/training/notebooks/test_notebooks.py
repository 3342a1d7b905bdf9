"""The notebooks run from top to bottom, with shorter trainings, and show what their own assertions claim."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import pytest
from PIL import Image

from training.tools.notebooks import FINGERPRINT, MOST_BYTES, NOTEBOOKS, code_cells, fingerprint, store_outputs


PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
SHARES = {"gpt": 0.4}  # of the training steps, where 0.3 are too few
each_notebook = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def run_cells(notebook: Any) -> list[Any]:
    """Executes the code in this process, a cell after the other, and returns the values that cells end with.

    The cells are plain Python, without magics, so that a kernel, whose start takes seconds, would do the same.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    values = []
    for number, cell in enumerate(code_cells(notebook)):
        tree = ast.parse(cell.source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        if isinstance(last, ast.Expr):
            values.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names))
    return values


@each_notebook
def test_notebook_runs_and_its_assertions_hold(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    monkeypatch.setenv("NOTEBOOK_SHARE", str(SHARES.get(path.stem, 0.3)))
    monkeypatch.setattr(plt, "show", lambda: (shown.extend(plt.get_fignums()), plt.close("all")))
    notebook = nbformat.read(path, as_version=4)
    with matplotlib.rc_context({"backend": "agg"}):
        values = run_cells(notebook)
    assert len(shown) >= 4 and plt.get_fignums() == []
    pictures = [value for value in values if isinstance(value, Image.Image)]
    assert all(len(picture.getcolors(1 << 16) or []) >= 2 for picture in pictures)
    assert "assert " in "".join(cell.source for cell in code_cells(notebook))


@each_notebook
def test_stored_outputs_are_those_of_the_code(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata[FINGERPRINT] == fingerprint(notebook), (
        f"Run: python -m training.tools.notebooks {path.stem}"
    )
    assert [cell.execution_count for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not re.search(r"0x[0-9a-f]{8}|/home/|/tmp/|/work/", path.read_text(encoding="utf-8").replace("\\/", "/"))
    assert path.stat().st_size <= MOST_BYTES


@each_notebook
def test_notebook_teaches(path: Path) -> None:
    """It begins with the question, and ends with what to remember and exercises."""
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    assert texts[0].startswith("# ") and "?" in texts[0].splitlines()[0]
    assert "## What to remember" in texts[-1] and re.search(r"## Exercises\n\n1\. ", texts[-1])


def small_notebook(path: Path, code: str) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code, id="a")])
    nbformat.write(notebook, path)
    return path


def test_outputs_are_stored_with_the_fingerprint_of_the_code(tmp_path: Path) -> None:
    code = "from PIL import Image\nprint('one')\nImage.new('RGB', (40, 30), 'red')"
    path = small_notebook(tmp_path / "small.ipynb", code)
    assert store_outputs(path) == path.stat().st_size
    notebook = nbformat.read(path, as_version=4)
    printed, picture = notebook.cells[0].outputs
    assert printed.text == "one\n" and list(picture.data) == ["image/png"]
    assert notebook.metadata[FINGERPRINT] == fingerprint(notebook)
    notebook.cells[0].source += "  # changed"
    assert notebook.metadata[FINGERPRINT] != fingerprint(notebook)


def test_a_cell_that_warns_leaves_the_notebook_as_it_was(tmp_path: Path) -> None:
    path = small_notebook(tmp_path / "small.ipynb", "import warnings\nwarnings.warn('not so')")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not so"):
        store_outputs(path)
    assert path.read_bytes() == before and {file.name for file in tmp_path.iterdir()} == {"small.ipynb"}
