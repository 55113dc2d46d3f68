"""What a release says of itself agrees: version and dates, Python versions, files that workflows and guides name."""

from __future__ import annotations

import datetime as dt
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import corrmask_fast

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
YAML_FILES = [
    *WORKFLOWS,
    *sorted((ROOT / ".github").glob("*.yml")),
    *sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")),
    *(ROOT / name for name in (".readthedocs.yaml", ".pre-commit-config.yaml", "CITATION.cff")),
]
PINNED = re.compile(r"uses: (?:\./\S+|[\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+)")


def parsed(path):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(path.read_text())


def jobs():
    """Every job of every workflow, with its workflow's path."""
    return [(path, job) for path in WORKFLOWS for job in parsed(path)["jobs"].values()]


def commands(path):
    """Everything that a workflow runs."""
    return [step["run"] for job in parsed(path)["jobs"].values() for step in job.get("steps", ()) if "run" in step]


def supported():
    return {entry.rpartition(" ")[2] for entry in PROJECT["classifiers"] if re.search(r":: Python :: \d+\.\d+$", entry)}


def test_version_changelog_and_citation_agree():
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    version, date = re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})", headings[1]).groups()
    assert version == corrmask_fast.__version__
    citation = parsed(ROOT / "CITATION.cff")
    assert citation["version"] == version
    assert citation["date-released"] == dt.date.fromisoformat(date)
    assert citation["license"] == PROJECT["license"]
    fixed = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= fixed


def test_the_paper_is_cited_under_its_three_titles():
    citation = parsed(ROOT / "CITATION.cff")
    papers = [citation["preferred-citation"], *citation["references"]]
    begin = ["The Right Inductive Bias for the Job", "Genes Are Not Words", "Hiding in Plain Sight"]
    assert [paper["title"].partition(":")[0] for paper in papers] == begin
    people = ["Hacohen", "Bingham", "Perets", "Aran"]
    assert all([author["family-names"] for author in paper["authors"]] == people for paper in papers)


def test_python_versions_are_the_same_everywhere():
    lowest, above = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()
    assert supported() == {f"3.{minor}" for minor in range(int(lowest), int(above))}
    matrix = parsed(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert set(matrix["python"]) == supported()
    assert parsed(ROOT / ".readthedocs.yaml")["build"]["tools"]["python"] in supported()
    for path, job in jobs():
        for step in job.get("steps", ()):
            named = str(step.get("with", {}).get("python-version", "3.11"))
            assert named in supported() or named.startswith("${{ matrix."), path.name


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yaml_files_parse(path):
    assert isinstance(parsed(path), dict)


def test_workflows_have_no_more_rights_than_they_need():
    for path in WORKFLOWS:
        assert parsed(path)["permissions"] == {"contents": "read"}
        for line in path.read_text().splitlines():
            if "uses:" in line:
                assert PINNED.fullmatch(line.strip().removeprefix("- ")), line
    rights = {(path.name, *job["permissions"].items()) for path, job in jobs() if "permissions" in job}
    assert rights == {("release.yml", ("id-token", "write"))}
    publish = parsed(ROOT / ".github" / "workflows" / "release.yml")["jobs"]["publish"]
    assert publish["environment"] == "pypi"
    assert all("run" not in step for step in publish["steps"])


def test_the_workflow_runs_what_ci_runs():
    local = re.findall(r'^step ".*?" (.*)$', (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert len(local) > 5
    everywhere = {".ci/site": "make docs"}  # docs.yml has a runner that can install what the site needs
    run = {command for name in ("ci.yml", "docs.yml") for command in commands(ROOT / ".github" / "workflows" / name)}
    assert {everywhere.get(command, command) for command in local} <= run


def test_files_that_the_workflows_name_exist():
    named = [word for path in WORKFLOWS for run in commands(path) for word in shlex.split(run)]
    files = [word for word in named if re.match(r"(\.ci|tests)/", word)]
    assert len(files) > 10
    for file in files:
        assert (ROOT / file).is_file(), file


def test_tools_are_pinned_alike():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    hooks = {repo["repo"].rpartition("/")[2]: repo["rev"] for repo in parsed(ROOT / ".pre-commit-config.yaml")["repos"]}
    assert hooks["ruff-pre-commit"] == f"v{pins['ruff']}"


def test_files_that_the_guide_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`((?:\.ci|\.github|tests|docs|bench|kernels|corrmask_fast)/[\w./*-]*)`", text))
    assert len(named) > 40
    for name in named:
        assert list(ROOT.glob(name.rstrip("/"))), name


def test_addresses_of_the_project_have_one_place():
    """Until the owner fills them in there are none; docs/conf.py reads them from pyproject.toml."""
    urls = PROJECT.get("urls", {})
    assert set(urls) <= {"Repository", "Documentation", "Issues", "Changelog"}
    texts = [*ROOT.glob("*.md"), *ROOT.glob("*.cff"), *(ROOT / ".github").rglob("*.*"), *(ROOT / "docs").rglob("*.md")]
    for path in texts:
        for found in re.findall(r"https?://[^\s)>\"'`]*corrmask[-_]fast[^\s)>\"'`]*", path.read_text()):
            assert found.startswith(tuple(urls.values()) or ("none",)), f"{path.relative_to(ROOT)}: {found}"
