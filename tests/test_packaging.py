"""What is shipped: the promises of pyproject.toml, the licence, the changelog, and what git tracks."""

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import pwgf_jax

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(PYPROJECT)["project"]
EXTRAS = PROJECT["optional-dependencies"]
MEGABYTE = 1_000_000


def tracked(*patterns: str) -> list[Path]:
    """Files that git tracks; the test is skipped where there is no checkout, as in a source distribution."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--", *patterns]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("name", ["jax", "jaxlib"])
def test_the_miscompiling_jax_is_refused(name):
    (requirement,) = (r for r in map(Requirement, PROJECT["dependencies"]) if r.name == name)
    assert not requirement.specifier.contains("0.10.2")
    assert all(requirement.specifier.contains(good) for good in ("0.10.1", "0.11.0", "0.12.0.1"))
    assert "https://github.com/jax-ml/jax/issues/39103" in PYPROJECT


def test_every_dependency_says_why_it_is_here():
    lists = [PROJECT["dependencies"], *EXTRAS.values()]
    for requirement in (entry for entries in lists for entry in entries):
        lines = [line for line in PYPROJECT.splitlines() if line.strip().startswith(f'"{requirement}"')]
        assert all(re.search(r",\s+# \w.{10,}", line) for line in lines), f"{requirement} has no reason on its line"


def test_every_dependency_has_a_floor():
    for entry in [*PROJECT["dependencies"], *(entry for entries in EXTRAS.values() for entry in entries)]:
        requirement = Requirement(entry)
        assert requirement.name == PROJECT["name"] or ">=" in str(requirement.specifier), entry


def test_extras_name_extras_that_exist():
    for entry in (entry for entries in EXTRAS.values() for entry in entries):
        requirement = Requirement(entry)
        if requirement.name == PROJECT["name"]:
            assert requirement.extras
            assert requirement.extras <= EXTRAS.keys()


def test_the_version_is_that_of_the_package():
    try:
        installed = metadata.version("pwgf_jax")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed: tests run from the source tree")
    assert installed == pwgf_jax.__version__


def test_the_changelog_has_this_version():
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert pwgf_jax.__version__ in headings


def test_the_licence_is_apache_2():
    assert PROJECT["license"] == "Apache-2.0"
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    for phrase in ("Apache License", "Version 2.0, January 2004", "END OF TERMS AND CONDITIONS"):
        assert phrase in licence


def test_importing_the_library_needs_run_time_dependencies_only():
    optional = "beartype chex diffrax hypothesis matfree matplotlib optimistix pytest sklearn tqdm".split()
    program = f"import sys; sys.modules.update(dict.fromkeys({optional})); import pwgf_jax"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_notebooks_are_stored_without_output():
    for path in tracked("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in code), path.name


def test_no_large_file_is_tracked():
    large = {path.name: path.stat().st_size for path in tracked() if path.stat().st_size > MEGABYTE}
    assert not large


def test_the_continuous_integration_script_can_be_run():
    if (ROOT / ".ci").exists():  # not part of a source distribution
        assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
