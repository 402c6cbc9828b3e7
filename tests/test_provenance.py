"""What a saved file says of the code that wrote it."""

import hashlib
import subprocess
from datetime import UTC, datetime

import pytest
import torch

import psvit
from psvit import provenance
from psvit.files import digest


@pytest.fixture
def git(monkeypatch, tmp_path):
    """Runs git in ``tmp_path``, whatever this machine's configuration; gives what it printed."""
    for name, value in {
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.org",
    }.items():
        monkeypatch.setenv(name, value)

    def run(*arguments):
        return subprocess.run(
            ["git", *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    return run


@pytest.fixture
def package(git, tmp_path):
    """A committed checkout of a package called as this one."""
    folder = tmp_path / provenance.PACKAGE.name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "README.md").write_text("read me\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    return folder


def test_the_digest_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest(tmp_path / "file") == known
    large = bytes(3_000_000)
    (tmp_path / "file").write_bytes(large)
    assert digest(tmp_path / "file") == hashlib.sha256(large).hexdigest()


def test_a_clean_checkout_gives_its_commit(git, package):
    head = git("rev-parse", "HEAD")
    assert provenance.git_state(package) == {"commit": head, "modified": False}


@pytest.mark.parametrize(
    ("path", "modified"),
    [
        ("{package}/__init__.py", True),
        ("{package}/new.py", True),
        ("conf/config.yaml", True),
        ("run.py", True),
        # neither decides what a run computes
        ("README.md", False),
        ("notes.txt", False),
    ],
)
def test_what_counts_as_modified(git, package, path, modified):
    (package.parent / path.format(package=package.name)).write_text("other = 1\n")
    assert provenance.git_state(package)["modified"] is modified


def test_a_package_installed_inside_another_project_has_no_commit(git, package):
    installed = package.parent / ".venv" / package.name
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert provenance.git_state(installed) == {}


def test_no_checkout_no_commit(tmp_path, monkeypatch):
    folder = tmp_path / "psvit"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    # even if a folder above is a checkout of something
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert provenance.git_state(folder) == {}
    assert provenance.git_state(tmp_path / "nowhere") == {}


def test_a_repository_without_commits_has_no_commit(git, tmp_path):
    folder = tmp_path / "psvit"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    git("init", "--quiet")
    git("add", ".")
    assert provenance.git_state(folder) == {}


def test_without_git_there_is_no_commit(package, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state(package) == {}


def test_a_hook_s_repository_is_not_taken_for_ours(git, package, monkeypatch):
    head = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/no/where")
    assert provenance.git_state(package)["commit"] == head


def test_what_is_written(monkeypatch):
    monkeypatch.setattr(provenance, "code_state", lambda: {"commit": "c0ffee", "modified": True})
    before = datetime.now(UTC).replace(microsecond=0)
    found = provenance.provenance(seed=3, torch="another")
    assert before <= datetime.fromisoformat(found.pop("date")) <= datetime.now(UTC)
    assert found.pop("spikingjelly").startswith("2.")
    assert found == {
        "psvit": psvit.__version__,
        "torch": "another",
        "commit": "c0ffee",
        "modified": True,
        "seed": 3,
    }
    assert provenance.provenance()["torch"] == torch.__version__


def test_the_state_is_that_of_the_first_call(monkeypatch):
    states = iter([{"commit": "first", "modified": False}, {"commit": "second", "modified": False}])
    monkeypatch.setattr(provenance, "git_state", lambda _: next(states))
    provenance.code_state.cache_clear()
    try:
        assert provenance.code_state() == provenance.code_state()
        assert provenance.code_state()["commit"] == "first"
    finally:
        provenance.code_state.cache_clear()
