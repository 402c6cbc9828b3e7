"""Command line of the benchmarks; see README.md beside this file."""

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.inference import compiled, inference, training
from benchmarks.neurons import neurons
from benchmarks.sensitivity import memory, sensitivity
from benchmarks.size import pruned, scaling
from benchmarks.timing import Options, Result
from psvit.files import write_json, write_text
from psvit.provenance import environment

BENCHMARKS = {
    run.__name__: run
    for run in (sensitivity, neurons, inference, training, pruned, memory, scaling, compiled)
}


def main() -> None:
    """Run the benchmarks that are named, all where none is, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--quick", action="store_true", help="small images: minutes in place of more"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of every measurement")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmarks"))
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in BENCHMARKS:
            parser.error(f"{name}: expected some of {', '.join(BENCHMARKS)}")
    if arguments.repeats < 1 or arguments.threads < 1:
        parser.error("--repeats and --threads: expected at least 1")

    torch.set_num_threads(arguments.threads)
    options = Options(torch.device(arguments.device), arguments.repeats, arguments.quick)
    arguments.output.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for name in arguments.names or BENCHMARKS:
        for each in BENCHMARKS[name](options):
            print(_line(each), flush=True)
            results.append(each)
            # what is done is kept, whatever becomes of the rest
            write(results, arguments)


def write(results: list[Result], arguments: argparse.Namespace) -> None:
    """``results.json``, and ``table.md`` with the machine's description."""
    columns = ("name", "ratio", "spread", "target")
    rows = [{column: asdict(each)[column] for column in columns} for each in results]
    write_json(arguments.output / "results.json", rows)
    machine = environment()
    gpus = ", ".join(gpu["name"] for gpu in machine["gpus"]) or "no GPU"
    head = [
        f"{machine['cpu']}, {arguments.threads} thread(s), {gpus}; on {arguments.device}; torch "
        f"{torch.__version__}; median and spread (largest less smallest) of {arguments.repeats}",
        "",
        "| what | ratio | spread | target | met | measured |",
        "|---|---|---|---|---|---|",
    ]
    write_text(arguments.output / "table.md", "\n".join([*head, *map(_line, results)]) + "\n")


def _line(each: Result) -> str:
    sign = "at most" if each.at_most else "at least"
    target = "" if each.target is None else f"{sign} {each.target:g}"
    met = {None: "", True: "yes", False: "no"}[each.met]
    return (
        f"| {each.name} | {each.ratio:.2f} | {each.spread:.2f} | {target} | {met} | {each.detail} |"
    )


if __name__ == "__main__":
    main()
