import pandas as pd

from psvit.report import style
from psvit.report.files import DIAGNOSTICS_COLUMNS
from psvit.report.firing import SHARES, firing_drift


def layers(share):
    """Diagnostics of two layers, that share of each silent and saturated, before and after."""
    rows = pd.DataFrame(0.2, index=range(2), columns=DIAGNOSTICS_COLUMNS)
    names = ["stem.neuron", "head.neuron"]
    return rows.assign(
        layer=names, segment=["stem", "head"], group="", **dict.fromkeys(SHARES, share)
    )


def test_without_a_silent_or_saturated_channel_there_is_no_empty_panel():
    with style.styled():
        figures = [firing_drift(rows) for rows in (layers(0.0), layers(0.25))]
    panels = [[axis.get_xlabel() for axis in figure.axes] for figure in figures]
    assert panels == [["firing rate (%)"], ["firing rate (%)", "channels (%)"]]
    legends = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in figures]
    both = ["base network", "pruned network"]
    channels = ["silent channels", "saturated channels", "in the base network"]
    # no layer of either is wholly silent
    assert legends == [both, both + channels]
