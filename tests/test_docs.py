"""The code in README.md and docs/ is code that works."""

import functools
import importlib
import re
import runpy
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from main_job import main_job
from omegaconf import OmegaConf
from PIL import Image

from psvit.cache import StageCache
from psvit.config import check_config
from psvit.data import create_data
from psvit.data.files import decode
from psvit.data.transforms import EvalTransform

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
    for page, code in (*blocks("bash"), *blocks("sh")):
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
        option, _, folder = word.partition("=")
        if option == "--config-dir":
            overrides.append(f"hydra.searchpath=[file://{ROOT / folder}]")
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


def picture(path, width, height):
    """A picture without edges or noise: two programs resize it nearly alike."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 7 + c) * np.cos(y / 9 - c) for c in range(3)]
    values = 127.5 + 120 * np.stack(waves, axis=-1)
    Image.fromarray(values.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def reader(tmp_path_factory, tiny_run):
    """The folder of a reader who has runs, under the names that the pages give them."""
    run, tmp_path = main_job(tmp_path_factory, tiny_run), tmp_path_factory.mktemp("reader")
    for name in ("outputs/runs/…", "outputs/runs/my_run", "RUN", "MULTIRUN/0", "MULTIRUN/1"):
        shutil.copytree(run, tmp_path / name)
    shutil.copytree(run / "pruned", tmp_path / "FOLDER")
    picture(tmp_path / "picture.png", 40, 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        yield tmp_path


# tests/models/test_models_own.py runs own_network.md: its file, config, command and check
PYTHON = [page.name for page in PAGES if "```python" in page.read_text()]
PYTHON.remove("own_network.md")


@pytest.mark.parametrize("page", PYTHON)
def test_python_runs(page, reader, config, tiny_run):
    cfg = config(*tiny_run)
    size = cfg.dataset.image_size
    given = {
        "__name__": "__main__",
        "images": torch.zeros(2, len(cfg.dataset.mean), size, size),
        "cfg": cfg,
        "data": create_data(cfg.dataset, cfg.seed),
        "Path": Path,
    }
    if page == "export.md":
        assert _module("psvit.export", ("RUN/base", "RUN/pruned")) == 0
        given["images"] = given["images"].numpy()
    # one after the other: a block may use what those before it made
    for code in (code for name, code in blocks("python") if name == page):
        exec(compile(code, page, "exec"), given)
    if "logits" in given:
        assert given["logits"].shape == (2, given["data"].num_classes)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("width", "height", "crop_pct"),
    [(32, 32, 0.875), (65, 41, 0.875), (41, 65, 1.0), (20, 31, 0.9), (33, 32, 1.0)],
)
def test_a_picture_prepared_without_psvit(tmp_path, width, height, crop_pct, interpolation):
    ((_, code),) = [block for block in blocks("python") if "def prepared" in block[1]]
    given = {}
    # without its last lines, which ask a network
    exec(code.partition("\n(scores,)")[0], given)
    picture(tmp_path / "picture.png", width, height)
    preprocessing = {
        "image_size": 32,
        "mean": [0.49, 0.48, 0.45],
        "std": [0.25, 0.24, 0.26],
        "crop_pct": crop_pct,
        "interpolation": interpolation,
    }
    found = given["prepared"](tmp_path / "picture.png", preprocessing)
    transform = EvalTransform(OmegaConf.create(preprocessing))
    expected = transform([decode(tmp_path / "picture.png")]).numpy()
    assert found.dtype == expected.dtype and found.shape == expected.shape
    # two of 255 levels, in units of the smallest deviation
    levels = 0 if (width, height) == (32, 32) else 2
    assert np.abs(found - expected).max() <= levels / 255 / 0.24 + 1e-6


# an export takes seconds, and one page has it twice
@functools.cache
def _module(name, words):
    """The exit code of ``python -m NAME WORDS``."""
    return importlib.import_module(
        f"{name}.__main__" if (ROOT / name.replace(".", "/")).is_dir() else name
    ).main(list(words))


def modules():
    """(page, module, arguments) of each ``python -m``."""
    found = []
    for language in ("bash", "sh"):
        for page, code in blocks(language):
            for line in code.splitlines():
                words = shlex.split(line, comments=True)
                if words[:2] == ["python", "-m"]:
                    found.append((page, words[2], tuple(words[3:])))
    return found


@pytest.mark.parametrize(("page", "name", "words"), modules())
def test_a_module_of_ours_runs(page, name, words, reader):
    # what the command before may have cleared
    StageCache(reader / "outputs/cache").get("base", {}, lambda folder: None)
    assert _module(name, words) == 0


def page_yaml(page):
    ((_, text),) = [found for found in blocks("yaml") if found[0] == page]
    return yaml.safe_load(text)


def test_a_local_config_composes(config):
    cfg = config()
    # neither group nor option that no config has
    cfg.merge_with(page_yaml("configs.md"))
    check_config(cfg)


def test_the_description_shown_is_what_a_run_writes(reader):
    shown = page_yaml("saved_networks.md")
    written = yaml.safe_load((reader / "RUN/pruned/model.yaml").read_text())
    assert set(shown) == set(written)
    for name in ("provenance", "preprocessing", "sha256"):
        assert set(shown[name]) <= set(written[name]), name
    assert shown["format"] == written["format"]


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
