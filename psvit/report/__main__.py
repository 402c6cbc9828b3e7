"""``python -m psvit.report FOLDER...`` makes the reports of run folders again."""

import argparse
import os
import sys

from psvit.errors import UserError
from psvit.report import write_report
from psvit.report.files import read_run
from psvit.report.table import print_table


def main(arguments: list[str] | None = None) -> int:
    """Make each folder's report and print its table; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m psvit.report", description=__doc__)
    parser.add_argument("folder", nargs="+", help="a run folder under outputs/")
    try:
        for folder in parser.parse_args(arguments).folder:
            write_report(folder)
            print_table(read_run(folder))
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
