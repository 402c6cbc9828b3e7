"""The code in README.md and docs/ is code that works."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from psvit.config import check_config

ROOT = Path(__file__).parents[1]
as_hydra_has_it = runpy.run_path(str(ROOT / "run.py"))["as_hydra_has_it"]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    """(page, code) of each fenced block."""
    return [
        (page.name, code)
        for page in PAGES
        for code in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)
    ]


def commands():
    """(page, arguments) of each ``python run.py``."""
    found = []
    for page, code in blocks("bash"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "run.py" in words and "-sc" not in words and "eval" not in words[:1]:
                found.append((page, tuple(words[words.index("run.py") + 1 :])))
    return list(dict.fromkeys(found))


def first_job(words):
    """The overrides of a command's first job."""
    parser = OverridesParser.create()
    overrides = []
    for word in as_hydra_has_it(words):
        if word.startswith("-"):
            continue
        override = parser.parse_override(word.replace("…", "X"))
        if override.is_sweep_override():
            name = word.partition("=")[0]
            word = f"{name}={next(iter(override.sweep_string_iterator()))}"
        overrides.append(word.replace("…", "X"))
    return overrides


@pytest.mark.parametrize(("page", "words"), commands())
def test_a_command_composes(page, words, monkeypatch):
    # also those for GPUs
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", first_job(words), return_hydra_config=True)
    check_config(cfg)


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_python_runs(page, code, tmp_path, monkeypatch):
    compiled = compile(code, page, "exec")
    if page != "api.md":
        # about a run's folder, a file of the reader's, or what stands in the lines before
        return
    monkeypatch.chdir(tmp_path)
    exec(compiled, {"__name__": "__main__"})


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
