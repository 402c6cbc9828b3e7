"""``report.html``: all that a run left in its folder, on one page that needs nothing else."""

import json
import shlex
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from psvit.files import write_text
from psvit.report import firing, sensitivity, table
from psvit.report.files import RunFiles
from psvit.report.html import from_markdown, render
from psvit.report.jobs import read_overrides

PAGE = "report.html"
ABSENT = "–"
HEADINGS = {
    "asked": "What was asked",
    "table": "The networks",
    "memory": "Accuracy against memory",
    "sensitivity": "Sensitivity",
    "plan": "The plan",
    "operations": "Operations and energy",
    "firing": "Firing after the cut",
    "classes": "Which classes paid",
    "again": "How to make it again",
}
# sections that a run may lack, and the files they show
SHOWN = {
    "memory": "figures/accuracy_memory.svg",
    "sensitivity": "figures/sensitivity_map.svg",
    "plan": "figures/plan.svg",
    "operations": "figures/operations.svg",
    "firing": "diagnostics.md",
    "classes": "figures/classes.svg",
}
# of the machine and the code, where environment.json tells them
ORIGIN = {
    "commit": "commit",
    "modified": "changed since that commit",
    "psvit": "psvit",
    "torch": "torch",
    "spikingjelly": "spikingjelly",
    "python": "Python",
    "platform": "system",
    "cpu": "processor",
    "cores": "cores",
    "date": "date (UTC)",
}


def write_page(run: RunFiles) -> None:
    """Write ``report.html`` from the run's files, the tables and figures of its report included."""
    write_text(run.folder / PAGE, page(run))


def page(run: RunFiles) -> str:
    """The page; sections of what was not run are left out."""
    about = run.results.get("run", {})
    environment = _environment(run.folder)
    sections = {
        key: heading
        for key, heading in HEADINGS.items()
        if key not in SHOWN or (run.folder / SHOWN[key]).is_file()
    }
    subtitle = [about.get(key) for key in ("model", "dataset", "pruning")]
    return render(
        "run.html",
        title=about.get("name") or run.folder.name,
        subtitle=" · ".join(filter(None, [*subtitle, f"seed {about.get('seed', ABSENT)}"])),
        warnings=warnings(run),
        tiles=_tiles(run),
        sections=sections,
        split=run.split,
        mended=sensitivity.mended(run.results),
        asked=asked(run),
        table=from_markdown(table.markdown(run)),
        figures={path.stem: path for path in (run.folder / "figures").glob("*.svg")},
        why=_markdown_file(run.folder / "plan.md"),
        diagnostics=_markdown_file(run.folder / "diagnostics.md"),
        again=again(run.folder, environment),
        origin=[
            (said, _read(environment[key])) for key, said in ORIGIN.items() if key in environment
        ],
        packages="\n".join(f"{k}=={v}" for k, v in environment.get("packages", {}).items()),
        seconds=[(stage, f"{took:.1f} s") for stage, took in run.results["seconds"].items()]
        if run.results.get("seconds")
        else [],
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    )


def warnings(run: RunFiles) -> list[str]:
    """What a reader must not overlook: networks that do not fire, whatever they seem to save, and a
    base network with nothing to lose."""
    silent = [row["name"] for row in run.results["rows"] if row.get("silent")]
    found = [
        f"Dead network, not a saving: {name} fired no spike on the images measured."
        for name in silent
    ]
    rows = run.diagnostics
    if not silent and rows is not None and firing.dead(rows):
        # the diagnostics are of the network that fine-tuning begins with
        tuned = run.results["rows"][-1].get("stage") == "finetuned"
        when = ", before fine-tuning," if tuned else ""
        before = ", and none did before" if firing.dead(rows, "_base") else ""
        told = f"after the cut{when} no spike reaches the classifier{before}"
        found.append(f"Dead network, not a saving: {told}.")
    base = run.row("base")
    if base is not None and base.get("guesses"):
        found.append(
            "Nothing to lose: the base network is right no more often than naming the largest "
            "class each time."
        )
    return found


def asked(run: RunFiles) -> list[tuple[str, str]]:
    """What the run was to do, as its config says: pairs of a name and a value."""
    config, about = run.config, run.results.get("run", {})
    pruning, finetune = config.get("pruning") or {}, config.get("finetune") or {}
    target = run.results.get("target_memory_saving")
    found = {
        "network": about.get("model"),
        "dataset": about.get("dataset"),
        "policy": about.get("pruning"),
        "target memory saving": None if target is None else f"{100 * target:g} %",
        "largest accuracy drop": _said(pruning.get("max_accuracy_drop"), "{} points"),
        "budget": _said(pruning.get("budget")),
        "target of the others in the budget": _said(pruning.get("target_saving")),
        "importance": pruning.get("importance"),
        "kinds of groups": _said(pruning.get("kinds")),
        "protected": _said(pruning.get("protect") or None),
        "recovery": pruning.get("recovery"),
        "rounds": _said(pruning.get("rounds")),
        "base network": config.get("ckpt_path")
        or _said((config.get("trainer") or {}).get("max_epochs"), "trained here, epochs: {}"),
        "fine-tuning epochs": _said(finetune.get("epochs")),
        "seed": _said(about.get("seed")),
        "tags": _said(config.get("tags") or None),
    }
    return [(name, value) for name, value in found.items() if value]


def again(folder: Path, environment: dict[str, Any]) -> str:
    """The commands that repeat the run."""
    lines = []
    if environment.get("commit"):
        lines.append(f"git checkout {environment['commit']}")
        if environment.get("modified"):
            lines.append("# the run had changes that were not committed")
    said = read_overrides(folder)
    if said is not None:
        lines.append(shlex.join(["python", "run.py", *said]))
    lines += [
        "# this page, from the files of the run's folder",
        shlex.join(["python", "-m", "psvit.report", str(folder)]),
    ]
    return "\n".join(lines)


def _tiles(run: RunFiles) -> list[tuple[str, str]]:
    """The figures that a reader looks for first."""
    base, last = run.row("base"), run.results["rows"][-1]
    tiles = [(f"{last['top1']:.2f} %", f"{run.split} top-1, {last['name']}")]
    if base is not None and last is not base:
        drop = round(base["top1"] - last["top1"], 2)
        side = "above" if drop < 0 else "below"
        tiles += [
            (f"{abs(drop):.2f} points", f"{side} the base network ({base['top1']:.2f} %)"),
            (table.SILENT, "so nothing is saved")
            if last.get("silent")
            else (f"{100 * last['memory_saving']:.1f} %", "memory saved"),
        ]
    return [*tiles, (f"{last['parameters']:,}", "parameters")]


def _said(value: Any, layout: str = "{}") -> str | None:
    """A config value for a reader; None where it is not set."""
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    return None if value is None else layout.format(value)


def _read(value: Any) -> str:
    """A value of ``environment.json`` for a reader."""
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _markdown_file(path: Path) -> Markup | None:
    return from_markdown(path.read_text(encoding="utf-8")) if path.is_file() else None


def _environment(folder: Path) -> dict[str, Any]:
    """What the run was made with: ``environment.json``."""
    if (folder / "environment.json").is_file():
        return json.loads((folder / "environment.json").read_text())
    return {}
