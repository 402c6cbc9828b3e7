"""``python -m psvit.report FOLDER...`` makes a run's report again, or compares many runs."""

import argparse
import sys
from pathlib import Path

from psvit.errors import UserError, traceback_wanted
from psvit.report import write_comparison, write_report
from psvit.report.files import read_run
from psvit.report.jobs import find_jobs
from psvit.report.table import print_table


def main(arguments: list[str] | None = None) -> int:
    """Make the report of one run, or the comparison of many; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m psvit.report", description=__doc__)
    parser.add_argument(
        "folder", nargs="+", help="a run's folder; or several, or a multirun's, to compare"
    )
    parser.add_argument(
        "--out",
        help="where the comparison goes (default: the multirun's folder; for several, comparison/)",
    )
    given = parser.parse_args(arguments)
    try:
        _report(given.folder, given.out)
    except UserError as error:
        if traceback_wanted():
            raise
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        # nothing can be written there
        if traceback_wanted():
            raise
        option, value = ("--out", given.out) if given.out else ("folder", " ".join(given.folder))
        print(UserError(option, value, f"{error.filename}: {error.strerror}"), file=sys.stderr)
        return 2
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # an edited or damaged file, most likely
        if traceback_wanted():
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(
            f"folder={' '.join(given.folder)}: a file there holds what no run writes ({reason}); "
            "HYDRA_FULL_ERROR=1 shows where",
            file=sys.stderr,
        )
        return 2
    return 0


def _report(folders: list[str], out: str | None) -> None:
    single = len(folders) == 1
    if single and out is None and find_jobs(folders[0]) in ([], [Path(folders[0])]):
        write_report(folders[0])
        print_table(read_run(folders[0]))
        return
    out = out or (folders[0] if single else "comparison")
    write_comparison(folders, out)
    print(f"comparison: {Path(out) / 'comparison.md'}")


if __name__ == "__main__":
    sys.exit(main())
