"""What is taken from a run's folder that goes on, and what is said where it cannot be."""

import runpy
import shutil

import pytest
import yaml
from main_job import RUN

from psvit.errors import UserError
from psvit.resume import claimed, resumed_arguments, stored_config


@pytest.fixture
def folder(tmp_path):
    """A run's folder that holds a config and nothing else."""
    config = {
        "paths": {"output_dir": str(tmp_path)},
        "model": {"module": None},
        "trainer": {"_target_": "lightning.pytorch.Trainer"},
        "logger": {
            "csv": {
                "_target_": "lightning.pytorch.loggers.CSVLogger",
                "save_dir": str(tmp_path),
            }
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def changed(folder, **values):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))
    return folder


def test_the_folder_is_hydras(folder):
    found = resumed_arguments([f"resume={folder}", "print_config=false"])
    assert found[2:] == [f"hydra.run.dir='{folder}'", "hydra.output_subdir=null"]
    assert resumed_arguments(["seed=1", "resume=null"]) == ["seed=1", "resume=null"]


@pytest.mark.parametrize(
    "further", [["seed=1"], ["-m"], ["pruning=uniform"], ["+a=1"], ["hydra.run.dir=x"], ["resume"]]
)
def test_what_would_change_the_run_is_refused(folder, further):
    with pytest.raises(UserError, match="goes on with the config of its folder") as error:
        resumed_arguments([f"resume={folder}", *further])
    assert str(error.value).startswith(f"resume={folder}: {further[0]} beside it")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    for name in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match=r"expected the folder of a run, with its config\.yaml"):
            resumed_arguments([f"resume={name}"])


def test_the_folder_may_have_moved(folder, tmp_path_factory, config):
    place = tmp_path_factory.mktemp("moved") / "run"
    shutil.move(folder, place)
    cfg = stored_config(config(), place)
    assert cfg.paths.output_dir == cfg.logger.csv.save_dir == str(place)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "lightning.pytorch.loggers.wandb.os.system",
        "lightning.pytorch.trainer.trainer.os.system",
        "subprocess.Popen",
        ["lightning.pytorch.Trainer"],
    ],
)
def test_code_is_not_taken_from_a_folder(folder, config, target):
    changed(folder, logger={"deep": [{"_target_": target}]})
    with pytest.raises(UserError, match="which is not run from a folder"):
        stored_config(config(), folder)


def test_a_module_is_imported_only_where_the_user_says_so(folder, config):
    changed(folder, model={"module": "my_network"})
    with pytest.raises(UserError, match=r"add model\.module=my_network"):
        stored_config(config(), folder)
    assert stored_config(config("+model.module=my_network"), folder).model.module == "my_network"


def test_yaml_makes_no_objects(folder, config, tmp_path):
    (folder / "config.yaml").write_text(f"a: !!python/object/apply:os.mkdir [{tmp_path}/made]\n")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read"):
        stored_config(config(), folder)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("strerror", ["No space left on device", "Read-only file system"])
def test_a_disk_that_takes_no_more_is_one_line(folder, strerror):
    number = {"No space left on device": 28, "Read-only file system": 30}[strerror]
    with pytest.raises(UserError) as error, claimed(folder):
        raise OSError(number, strerror, str(folder / "results.json"))
    message = str(error.value)
    assert message.startswith(f"paths.output_dir={folder}/results.json: {strerror}; expected")
    assert message.endswith(f"then go on with resume={folder}")


def test_other_errors_are_not_taken_for_the_disks(tmp_path):
    with pytest.raises(FileNotFoundError), claimed(tmp_path):
        (tmp_path / "none").read_text()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr("sys.argv", [str(RUN), f"hydra.run.dir={tmp_path}/file/run"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RUN), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith(f"paths.output_dir={tmp_path}/file/run: Not a directory; expected")
