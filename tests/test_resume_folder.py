"""What is taken from a run's folder that goes on, and what is said where it cannot be."""

import runpy
import shutil
import sys

import pytest
import yaml
from main_job import RUN
from omegaconf import OmegaConf

from psvit.errors import UserError
from psvit.pipeline import run
from psvit.resume import claimed, read_state
from psvit.stored import resumed_arguments, stored_config


@pytest.fixture
def folder(tmp_path, config):
    """A run's folder that holds a config and nothing else."""
    cfg = config("logger=csv", f"paths.output_dir={tmp_path}")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
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


def test_what_lies_in_the_folder_moves_with_it_and_nothing_else(folder, config, tmp_path_factory):
    changed(
        folder,
        ckpt_path=f"{folder}/base",
        name=f"{folder}-2",
        tags=[str(folder)],
    )
    place = tmp_path_factory.mktemp("moved") / "run"
    shutil.move(folder, place)
    cfg = stored_config(config(), place)
    assert (cfg.ckpt_path, cfg.name, cfg.tags) == (f"{place}/base", f"{folder}-2", [str(place)])


@pytest.mark.parametrize("written", [None, "", "digits"])
def test_a_run_without_an_output_folder_keeps_its_values(folder, config, written):
    changed(folder, paths={"output_dir": written, "cache_dir": None})
    before = yaml.safe_load((folder / "config.yaml").read_text())
    cfg = OmegaConf.to_container(stored_config(config(), folder))
    assert {**cfg, "resume": None} == before


@pytest.mark.parametrize(
    ("removed", "told"),
    [
        (("channels_last", None), "lacks channels_last,"),
        (("measure", None), "lacks measure,"),
        (("trainer", "cuda_graphs"), "lacks trainer.cuda_graphs,"),
        (("pruning", "ridge"), "lacks pruning.ridge,"),
    ],
)
def test_the_options_that_an_older_version_did_not_have_are_named(folder, config, removed, told):
    plain = yaml.safe_load((folder / "config.yaml").read_text())
    section, option = removed
    del (plain if option is None else plain[section])[option or section]
    (folder / "config.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(UserError) as error:
        stored_config(config(), folder)
    assert told in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["pruning=none", "finetune=none", "logger=none"],
        ["model=e_spikeformer", "dataset=cifar10", "pruning=budgeted"],
        ["pruning=sensitivity", "debug=profiler", "trainer=gpu"],
    ],
)
def test_options_that_a_choice_does_not_have_are_not_missing(folder, config, overrides):
    cfg = config(*overrides, f"paths.output_dir={folder}", "dataset.root=x")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    assert stored_config(config(), folder).pruning == cfg.pruning


@pytest.mark.parametrize("values", [{"model": None}, {"dataset": None}, {"paths": "x"}])
def test_a_section_that_is_none_is_one_line(folder, config, values):
    changed(folder, **values)
    with pytest.raises(UserError, match=f"expected a section of options: {next(iter(values))}"):
        stored_config(config(), folder)


@pytest.mark.parametrize("text", ["", "some text", "- 1", "{", "\x00"])
def test_a_config_that_is_none_is_one_line(folder, config, text):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"its config\.yaml (is damaged|cannot be read)"):
        stored_config(config(), folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "3", '{"finished": 1}', '{"loggers": null}', '{"arithmetic": "AVX2"}'],
)
def test_a_state_that_is_damaged_is_one_line(folder, text):
    (folder / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json: is damaged: remove it"):
        read_state(folder)


@pytest.mark.parametrize("text", [None, "", "{}", '{"rows": []}', "[]"])
def test_a_finished_run_without_results_is_one_line(folder, text):
    (folder / "run.json").write_text('{"finished": true}')
    if text is not None:
        (folder / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json: the run is finished, but"):
        run(OmegaConf.load(folder / "config.yaml"), folder, resumed=True)


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
    assert stored_config(config("++model.module=my_network"), folder).model.module == "my_network"


def test_the_advice_works_as_it_is_written(folder, monkeypatch, capsys):
    """``python run.py resume=FOLDER``, then with what its message says to add."""
    model = yaml.safe_load((folder / "config.yaml").read_text())["model"]
    changed(folder, model={**model, "module": "no_network_of_mine"})

    def told(*advice):
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr("sys.argv", [str(RUN), f"resume={folder}", *advice])
        with pytest.raises(SystemExit):
            runpy.run_path(str(RUN), run_name="__main__")
        return capsys.readouterr().err

    _, _, advice = told().strip().partition(": add ")
    assert advice == "model.module=no_network_of_mine"
    # on to the import, which is where this network ends
    assert "No module named 'no_network_of_mine'" in told(advice)


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
    assert message.startswith(f"hydra.run.dir={folder}/results.json: {strerror}; expected")
    assert message.endswith(f"then go on with resume={folder}")


def test_other_errors_are_not_taken_for_the_disks(tmp_path):
    with pytest.raises(FileNotFoundError), claimed(tmp_path):
        (tmp_path / "none").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_the_system_does_not_let_be_made_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr("sys.argv", [str(RUN), "hydra.run.dir=/proc/x"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RUN), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith("hydra.run.dir=/proc/x: No such file or directory; expected")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr("sys.argv", [str(RUN), f"hydra.run.dir={tmp_path}/file/run"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RUN), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith(f"hydra.run.dir={tmp_path}/file/run: Not a directory; expected")


@pytest.mark.parametrize("option", ["hydra.run.dir={}/{}", "-m hydra.sweep.dir={}/{}"])
def test_a_name_that_is_too_long_is_one_line(tmp_path, monkeypatch, capsys, option):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    given = option.format(tmp_path, "a" * 300).split()
    monkeypatch.setattr("sys.argv", [str(RUN), *given])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RUN), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.endswith("aaa: File name too long; expected a shorter name")
