"""The house rules, read off the source: arrows between rooms, sizes, and what importing loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "realgen"
FILES = sorted(SRC.rglob("*.py"))
MAY_IMPORT = {
    "core": {"core"},
    "formulas": {"formulas"},
    "hub": {"core", "hub"},
    "prompt_optimizers": {"core", "hub", "prompt_optimizers"},
    "generators": {"core", "formulas", "hub", "generators"},
    "scorers": {"core", "hub", "scorers"},
    "reward": {"core"},
    "train": {"core", "formulas", "provenance", "reward", "train"},
    "pipeline": {"core", "reward"},
    "search": {"core", "reward"},
    "requests": {"core"},
    "provenance": {"core"},
    "run_file": {"core", "provenance"},
    "gallery": {"core", "provenance", "requests", "run_file"},
    "pictures": {"core", "run_file"},
    "score_table": {"core", "formulas"},
    "catalogue": {"core", "hub"},
}


def room(file: Path) -> str:
    return file.relative_to(SRC).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.Module) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("realgen."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "realgen":
            found |= {name.name for name in node.names if not name.name.startswith("__")}
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("realgen.")}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SRC)))
def test_rooms_import_only_downwards(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if (allowed := MAY_IMPORT.get(room(file))) is not None:
        assert imported_rooms(tree) <= allowed


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SRC)))
def test_files_and_functions_stay_small(file):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_at_most_two_broad_excepts():
    broad = [
        (file.name, node.lineno)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}))
    ]
    assert len(broad) <= 2, broad


def test_tests_are_at_least_four_fifths_of_the_source():
    count = lambda files: sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)  # noqa: E731
    assert count(Path(__file__).parent.rglob("*.py")) >= 0.8 * count(FILES)


@pytest.mark.parametrize(
    "module",
    [
        "realgen",
        "realgen.apps.cli",
        "realgen.gallery",
        "realgen.core.protocols",
        "realgen.pictures",
        "realgen.reward",
        "realgen.search",
        "realgen.pipeline",
    ],
)
def test_importing_loads_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_loads_only_what_it_shows():
    heavy = {"torch", "numpy", "pydantic", "yaml", "PIL", "rich"}
    code = f"""
import sys
from realgen.apps import cli
try:
    cli.app(["--help"])
except SystemExit as end:
    loaded = {heavy} & set(sys.modules)
    sys.exit(end.code or ", ".join(sorted(loaded)) or 0)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Draw photographs from words" in ran.stdout
    assert ran.returncode == 0, ran.stderr
