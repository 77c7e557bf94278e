"""Run a notebook and write it with what it printed: python dev/site/notebook.py examples/tour.ipynb

Progress bars and warnings are left out, and of two forms of a picture the smaller one stays.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/jpeg" in output.get("data", {}):
                    del output.data["image/png"]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    run(Path(sys.argv[1]))
