import pytest
import report_runs

from psvit.report import write_report
from psvit.report.files import read_run


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A run of 29 channel groups with its report; tests only read it."""
    groups = report_runs.channel_groups((2, 1))
    folder = report_runs.write_run(tmp_path_factory.mktemp("run"), groups)
    for network in ("base", "pruned", "finetuned"):
        (folder / network).mkdir()
        (folder / network / "model.safetensors").write_bytes(network.encode() * 1000)
        (folder / network / "model.yaml").write_text("family: meta_spikeformer\n")
    write_report(folder)
    return folder


@pytest.fixture(scope="session")
def run(folder):
    return read_run(folder)
