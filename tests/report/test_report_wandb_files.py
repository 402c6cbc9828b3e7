"""The sweep file and the report layout name options and values that exist."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from psvit.config import check_config
from psvit.report import dashboard, diagnostics
from psvit.report.files import DIAGNOSTICS_COLUMNS

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "wandb"
SWEEP = yaml.safe_load((EXPERIMENTS / "sweep.yaml").read_text())


def offered(parameter):
    """Values that a sweep may draw."""
    return parameter.get("values") or [
        parameter[key] for key in ("value", "min", "max") if key in parameter
    ]


FIXED = [part for part in SWEEP["command"] if not part.startswith("${")]


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, given in SWEEP["parameters"].items() for value in offered(given)],
)
def test_every_value_of_the_sweep_composes(config, name, value):
    check_config(config(*FIXED, f"{name}={value}"))


def test_the_sweep_optimises_a_value_of_the_summary(run):
    assert SWEEP["metric"]["name"] in dashboard.summary(run)
    assert (EXPERIMENTS.parents[1] / SWEEP["program"]).is_file()


def test_the_report_shows_what_runs_log(run, folder):
    specification = importlib.util.spec_from_file_location("w", EXPERIMENTS / "report.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    numbers = {**dict.fromkeys(DIAGNOSTICS_COLUMNS, 1), "segment": "head", "group": ""}
    fired = replace(run, diagnostics=pd.DataFrame([numbers]))
    summaries = {*dashboard.summary(run), *diagnostics.summary(fired)}
    curves = {f"{stage}/{name}" for stage in ("base", "finetune") for name in dashboard.CURVES}
    figures = {f"figures/{path.stem}" for path in (folder / "figures").glob("*.png")}
    tables = {f"{name}/table" for name in ("final", "sensitivity", "plan", "operations")}
    known = summaries | curves | figures | tables

    report = script.layout("someone", "psvit")
    panels = [panel for block in report.blocks for panel in getattr(block, "panels", [])]
    shown = set()
    for panel in panels:
        axes = [getattr(panel, axis, None) for axis in ("x", "y")]
        axes += [column.metric for column in getattr(panel, "columns", [])]
        for metric in [*axes, *(getattr(panel, "metrics", None) or [])]:
            for one in metric if isinstance(metric, list) else [metric]:
                shown.add(getattr(one, "name", one))
        shown |= {getattr(panel, "table_name", None), *(getattr(panel, "media_keys", None) or [])}
    assert len(panels) == 17
    assert shown - {None, "epoch"} <= known
