"""Paths of a config: absolute in a run's folder, so that the run goes on from anywhere."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from psvit.config import make_absolute
from psvit.config.paths import PATHS
from psvit.errors import UserError
from psvit.pipeline import run
from psvit.resume import FolderTaken
from psvit.stored import resumed_arguments, stored_config


def given(config, path):
    return config("finetune=distill", *(f'{option}="{path}"' for option in PATHS))


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("some/folder", "{here}/some/folder"),
        ("../folder", "{here}/../folder"),
        ("~/some/folder", "{home}/some/folder"),
        ("/some/folder/", "/some/folder"),
        ("some/~", "{here}/some/~"),
    ],
)
def test_paths_are_made_absolute(config, tmp_path, monkeypatch, path, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/a home")
    cfg = given(config, path)
    make_absolute(cfg)
    expected = place.format(here=tmp_path, home="/a home")
    assert [OmegaConf.select(cfg, option) for option in PATHS] == [expected] * len(PATHS)


@pytest.mark.parametrize("dataset", ["digits", "image_folder"])
def test_what_is_null_or_missing_stays(config, dataset):
    cfg = config(f"dataset={dataset}", "finetune=none")
    before = OmegaConf.to_yaml(cfg)
    make_absolute(cfg)
    assert OmegaConf.to_yaml(cfg) == before


@pytest.mark.parametrize("path", ["~nobody_of_this_name/x", "a" * 300])
@pytest.mark.parametrize("option", PATHS)
def test_a_path_that_cannot_be(config, option, path):
    cfg = given(config, "folder")
    OmegaConf.update(cfg, option, path)
    with pytest.raises(UserError) as error:
        make_absolute(cfg)
    assert str(error.value).startswith(f"{option}=")


def test_the_folder_to_resume_may_be_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").touch()
    assert f"hydra.run.dir='{tmp_path}/run'" in resumed_arguments(['resume="~/run"'])


def test_a_run_goes_on_from_another_place(config, tiny_run, tmp_path, monkeypatch):
    """With its own cache; and the same command, from there, is the same run."""
    one, other, folder = (tmp_path / name for name in ("one", "other", "run"))
    one.mkdir()
    other.mkdir()
    options = (*tiny_run, "trainer.max_epochs=1", "pruning=none", "finetune=none", "logger=none")

    def composed(*overrides):
        cfg = config(*options, "print_config=false", "paths.cache_dir=cache", *overrides)
        cfg.paths.output_dir = str(folder)
        return cfg

    monkeypatch.chdir(one)
    results = run(composed(), folder)
    assert yaml.safe_load((folder / "config.yaml").read_text())["paths"] == {
        "output_dir": str(folder),
        "cache_dir": f"{one}/cache",
    }
    kept = sorted(Path("cache/base").glob("[!.]*"))
    assert len(kept) == 1
    monkeypatch.chdir(other)
    assert run(composed(), folder) == json.loads(json.dumps(results))
    with pytest.raises(FolderTaken):
        run(composed("seed=5"), folder)
    # as if it had been stopped
    (folder / "run.json").unlink()
    shutil.rmtree(folder / "base")
    monkeypatch.setattr("lightning.Trainer.fit", lambda *_: pytest.fail("training began"))
    run(stored_config(composed(), folder), folder, resumed=True)
    assert (folder / "base").exists() and not list(other.iterdir())
