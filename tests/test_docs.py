"""What the README and the docs show is run, and what they list is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from realgen.core import config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_python_in_the_readme_runs(code, tmp_path):
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_recipes_and_profiles_that_the_readme_names_exist():
    for name in re.findall(r"--recipe ([\w-]+)", README):
        assert name in config.shipped("recipes")
    for name in re.findall(r"--profile ([\w-]+)", README):
        assert name in config.shipped("profiles")
    for name in re.findall(r"realgen (?:train|check) ([a-z][\w-]+)", README):
        assert name in config.shipped("recipes")


@pytest.mark.parametrize("file", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(file):
    for target in re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (file.parent / target).exists(), target


def test_cli_md_is_what_help_says():
    done = subprocess.run([sys.executable, str(ROOT / "docs/make_cli.py")], capture_output=True, text=True, check=True)
    assert (ROOT / "docs/cli.md").read_text(encoding="utf-8") == done.stdout, "run docs/make_cli.py > docs/cli.md"


def test_the_files_that_the_readme_lists_exist():
    tree = re.search(r"```\nsrc/realgen/\n(.*?)```", README, re.DOTALL)[1]
    for line in tree.splitlines():
        for name in re.findall(r"^\s{2}(\S+)|(\w+/)(?= |$)", line):
            path = name[0] or name[1]
            assert (ROOT / "src/realgen" / path).exists(), path
