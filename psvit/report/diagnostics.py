"""What a cut did to the neurons: ``diagnostics.md`` and its figure, from a run's files."""

import math

import pandas as pd

from psvit.files import write_text
from psvit.report import style
from psvit.report.files import RunFiles
from psvit.report.firing import dead, firing_drift

FIGURE = "firing_drift"
# those of psvit.measure.firing, which needs torch; a report does not
SATURATED, SEPARATOR = 0.99, ", "
# a prediction holds if it is off by no more than this share of the larger of the two
TOLERANCE = 0.25
# groups in the table, layers named for their drift
WORST, FURTHEST = 10, 3
MEASURES = {
    "loss": "increase of the cross-entropy",
    "kl": "divergence from the base network's outputs",
}


def write_diagnostics(run: RunFiles) -> None:
    """Write ``diagnostics.md`` and ``figures/firing_drift`` (PNG and SVG).

    Without ``diagnostics.csv`` neither is written, and those of an earlier report are removed.
    """
    text, figures = run.folder / "diagnostics.md", run.folder / "figures"
    if run.diagnostics is None:
        for path in (text, *(figures / f"{FIGURE}{suffix}" for suffix in (".png", ".svg"))):
            path.unlink(missing_ok=True)
        return
    write_text(text, markdown(run))
    with style.styled():
        style.save(firing_drift(run.diagnostics), figures, FIGURE)


def summary(run: RunFiles) -> dict[str, float]:
    """What a dashboard sorts by: ``firing/silent`` and so on, ``prediction/measured`` and so on.

    Fractions: rates are means over the neuron layers, ``silent`` and ``saturated`` shares of all
    their channels. Predictions are in nats; ``firing/dead`` and ``prediction/held`` are 0 or 1.
    """
    values: dict[str, float] = {}
    rows = run.diagnostics
    if rows is not None:
        values["firing/dead"] = float(dead(rows))
        for when in ("_base", ""):
            values[f"firing/rate{when}"] = float(rows[f"rate{when}"].mean())
            for share in ("silent", "saturated"):
                values[f"firing/{share}{when}"] = _share(rows, share, when)
    found = prediction(run)
    if found is not None:
        predicted, measured = found
        values |= {"prediction/predicted": predicted, "prediction/measured": measured}
        values["prediction/held"] = float(_holds(predicted, measured))
    return values


def by_group(rows: pd.DataFrame) -> pd.DataFrame:
    """The diagnostics of every channel group: means over the channels of its neuron layers.

    A layer of several groups counts for each; one of no group stands under its own name. The
    groups that lost most channels to silence come first, then those that lost most to saturation.
    """
    names = rows["group"].where(rows["group"] != "", rows["layer"]).str.split(SEPARATOR)
    found = []
    for name, layers in rows.assign(group=names).explode("group").groupby("group", sort=False):
        row = {"group": name, "layers": len(layers)}
        for when in ("_base", ""):
            row[f"channels{when}"] = int(layers[f"channels{when}"].sum())
            for measured in ("rate", "silent", "saturated"):
                row[f"{measured}{when}"] = _share(layers, measured, when)
        found.append(row)
    groups = pd.DataFrame(found)
    lost = pd.DataFrame({m: groups[m] - groups[f"{m}_base"] for m in ("silent", "saturated")})
    # what came back to life is no loss
    order = (
        lost.clip(lower=0)
        .round(9)
        .sort_values(["silent", "saturated"], ascending=False, kind="stable")
    )
    return groups.loc[order.index].reset_index(drop=True)


def markdown(run: RunFiles) -> str:
    """The diagnostics as a section of Markdown."""
    rows = run.diagnostics
    legend = (
        "Rate: mean output of a channel, time step, position and image, in percent of the most "
        "that the neuron can emit. Silent: never fired on the images of the measurement. "
        f"Saturated: a rate of at least {100 * SATURATED:g} %. A rate is that of the channels a "
        "network has: a cut that takes quiet channels raises it."
    )
    picture = f"![Firing by neuron layer](figures/{FIGURE}.png)"
    parts = [*_verdict(rows), _overview(run, rows), _table(rows), legend, picture]
    return "\n\n".join(["## Firing after the cut", *parts]) + "\n"


def _verdict(rows: pd.DataFrame) -> list[str]:
    """What must not be overlooked: a network, or layers, that fire no more."""
    found = []
    if dead(rows):
        text = "no spike reaches the classifier on any image measured"
        if dead(rows, "_base"):
            text += "; it was so before the cut"
        found.append(f"**Dead network, not a saving: {text}.**")
    silent = rows[rows["silent"] == 1]
    if len(silent):
        fell = silent["silent_base"] < 1
        names = ", ".join(f"`{layer}`" for layer in silent.loc[fell, "layer"])
        before = len(silent) - int(fell.sum())
        found.append(
            f"**Wholly silent neuron layers: {len(silent)} of {len(rows)}"
            + (f", {before} of them before the cut too" if before else "")
            + (f". Gone silent: {names}" if names else "")
            + ".**"
        )
    return found


def _overview(run: RunFiles, rows: pd.DataFrame) -> str:
    rate, rate_base = rows["rate"].mean(), rows["rate_base"].mean()
    lines = [f"- Mean rate of the {len(rows)} neuron layers: {_change(rate_base, rate)}."]
    drifted = rows.loc[rows["drift"].abs().sort_values(ascending=False, kind="stable").index]
    named = [
        f"`{row.layer}` {100 * row.rate_base:.1f} → {100 * row.rate:.1f} %"
        for row in drifted.head(FURTHEST).itertuples()
    ]
    lines.append(f"- Largest drift: {', '.join(named)}.")
    for name in ("silent", "saturated"):
        change = _change(_share(rows, name, "_base"), _share(rows, name, ""))
        lines.append(f"- {name.capitalize()} channels: {change}.")
    found = prediction(run)
    if found is not None:
        lines.append(f"- {_compared(run, *found)}")
    return "\n".join(lines)


def _compared(run: RunFiles, predicted: float, measured: float) -> str:
    """Predicted against measured, in a line."""
    record = run.results["prediction"]
    measure = MEASURES.get(record.get("measure"), "loss")
    text = f"Prediction ({measure}): {predicted:.3g} nats predicted, {measured:.3g} measured"
    as_cut, recovered = record["measured"], record.get("measured_after_recovery")
    if record.get("of") == "recovered":
        text += f" after recovery ({as_cut:.3g} as cut)"
    elif recovered is not None and recovered != measured:
        text += f", {recovered:.3g} after recovery"
    if _holds(predicted, measured):
        return f"{text}: it held, within {100 * TOLERANCE:g} %."
    times = ""
    if min(predicted, measured) > 0:
        times = f"; the cut cost {measured / predicted:.2g} times what was predicted"
    return f"{text}: **it did not hold{times}.**"


def _table(rows: pd.DataFrame) -> str:
    groups = by_group(rows)
    # beyond rounding
    more = [groups[m] > groups[f"{m}_base"] + 1e-9 for m in ("silent", "saturated")]
    changed = groups[more[0] | more[1]]
    if changed.empty:
        return "No channel group has a larger share of silent or saturated channels than before."
    lines = [
        "| channel group | neuron layers | their channels | silent % | saturated % | rate % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in changed.head(WORST).itertuples():
        cells = [str(row.layers), f"{row.channels_base} → {row.channels}"]
        for name in ("silent", "saturated", "rate"):
            before, after = getattr(row, f"{name}_base"), getattr(row, name)
            cells.append(f"{100 * before:.1f} → {100 * after:.1f}")
        lines.append(f"| {' | '.join([row.group, *cells])} |")
    if len(changed) > WORST:
        lines += ["", f"The worst {WORST} of {len(changed)} groups; all: `diagnostics.csv`."]
    return "\n".join(lines)


def _share(rows: pd.DataFrame, measured: str, when: str) -> float:
    """The mean over all channels of the layers."""
    channels = rows[f"channels{when}"]
    return float((rows[f"{measured}{when}"] * channels).sum() / channels.sum())


def _change(before: float, after: float) -> str:
    return f"{100 * before:.1f} % before, {100 * after:.1f} % after"


def prediction(run: RunFiles) -> tuple[float, float] | None:
    """What the plan was predicted to cost and what it did, in nats; None where nothing was.

    Of a base network that is silent any cut costs nothing, which is no prediction that held.
    """
    if run.diagnostics is not None and dead(run.diagnostics, "_base"):
        return None
    record = run.results.get("prediction") or {}
    # what the policy predicted: of the network as cut, or of what recovery leaves
    found = "measured_after_recovery" if record.get("of") == "recovered" else "measured"
    predicted, measured = (
        math.nan if (number := record.get(name)) is None else float(number)
        for name in ("predicted", found)
    )
    if not (math.isfinite(predicted) and math.isfinite(measured)):
        return None
    return predicted, measured


def _holds(predicted: float, measured: float) -> bool:
    return abs(measured - predicted) <= TOLERANCE * max(abs(measured), abs(predicted))
