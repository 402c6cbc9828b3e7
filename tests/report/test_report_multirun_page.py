import numpy as np
import pytest
import report_runs
from comparison_runs import change, write_multirun
from html_reader import Reader

from psvit.report import style, write_comparison
from psvit.report.comparison import read_runs
from psvit.report.multirun_page import SPREAD, sensitivities
from psvit.report.page import PAGE
from psvit.report.spread import spread

GROUPS = dict(list(report_runs.channel_groups((0, 0)).items())[:3])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Six jobs, one failed; those of seeds 0 and 1 have sensitivities, of two base networks."""
    folder = write_multirun(tmp_path_factory.mktemp("sweep"))
    for job, seed in ((0, 0), (3, 0), (1, 1)):
        report_runs.sensitivity(GROUPS, seed).to_csv(folder / f"{job}/sensitivity.csv", index=False)
        report_runs.uniform().to_csv(folder / f"{job}/uniform.csv", index=False)
    (folder / "4" / PAGE).write_text("<p>a job's page</p>")
    write_comparison([folder], folder)
    return folder


@pytest.fixture(scope="module")
def read(sweep):
    return Reader((sweep / PAGE).read_text())


def test_the_page_holds_the_comparison_and_what_failed(read):
    assert "6 runs" in read.text and "97.00 ± 1.00 % top-1, 3 seeds" in read.text
    assert "12.00 ± 2.00" in read.text
    assert "failed: pruning=fine_grained seed=2 (no results)" in read.text
    sections = ["front", "comparison", "sensitivity", "missing", "jobs"]
    assert read.values("section", "id") == sections


def test_only_jobs_that_have_a_page_are_linked(read):
    assert read.values("a", "href") == [f"4/{PAGE}"]
    assert read.tags.count("li") == 5 + 1


def test_both_figures_are_inside(read, sweep):
    assert len(read.values("img", "src")) == 2
    assert (sweep / "figures" / f"{SPREAD}.png").is_file()


def test_curves_are_means_over_base_networks_not_over_jobs(sweep):
    found = sensitivities(read_runs([sweep])["folder"].unique())[False]
    with style.styled():
        figure = spread(found)
    lines = {line.get_gid(): line for axis in figure.axes for line in axis.lines if line.get_gid()}
    assert set(lines) == set(GROUPS)
    # jobs 0 and 3 have the same base network: it counts once
    drops = [report_runs.sensitivity(GROUPS, seed)["drop"] for seed in (0, 1)]
    drawn = np.concatenate([lines[group].get_ydata()[1:] for group in GROUPS])
    np.testing.assert_allclose(drawn, np.mean(drops, axis=0))
    assert figure.legends[0].get_title().get_text().startswith("mean of 2 runs")


def test_runs_of_one_base_network_have_no_spread(sweep):
    assert spread(sensitivities([sweep / "0", sweep / "3"])[False]) is None
    assert sensitivities([sweep / "2"]) == {}


def test_runs_of_other_importances_are_in_no_mean(tmp_path):
    folder = write_multirun(tmp_path)
    for job, seed in ((0, 0), (1, 1), (3, 2)):
        report_runs.sensitivity(GROUPS, seed).to_csv(folder / f"{job}/sensitivity.csv", index=False)
    change(folder / "1", lambda results: results["run"].update(importance="taylor"))
    (rows,) = sensitivities([str(folder / job) for job in "103"]).values()
    assert set(rows["run"]) == {str(folder / "0"), str(folder / "3")}


def test_what_recovery_leaves_is_not_averaged_with_networks_as_cut(tmp_path):
    folder = write_multirun(tmp_path)
    for job, seed in ((0, 0), (1, 1), (3, 2), (4, 3)):
        report_runs.sensitivity(GROUPS, seed).to_csv(folder / f"{job}/sensitivity.csv", index=False)
        report_runs.uniform().to_csv(folder / f"{job}/uniform.csv", index=False)
    analyses = {"sensitivity.csv": {"mended": True}}
    for job in "34":
        change(folder / job, lambda results: results.update(sensitivity=analyses))
    # a job that failed, with a file cut short
    for name in ("sensitivity.csv", "uniform.csv"):
        (folder / "2" / name).write_text((folder / "0" / name).read_text())
    (folder / "2/results.json").write_text('{"rows": [')
    write_comparison([folder], folder)
    assert {path.stem for path in (folder / "figures").glob(f"{SPREAD}*.png")} == {
        SPREAD,
        f"{SPREAD}_mended",
    }
    found = sensitivities([str(folder / job) for job in "0134"])
    assert {key: len(rows["run"].unique()) for key, rows in found.items()} == {False: 2, True: 2}
    assert len(Reader((folder / PAGE).read_text()).values("img", "src")) == 3
