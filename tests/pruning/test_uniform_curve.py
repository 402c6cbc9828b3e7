"""The uniform curve goes on from the rows that are whole; a ratio for a budget."""

import torch

from psvit.pruning.ranking import Ranking
from psvit.pruning.uniform_curve import measure_uniform


def test_a_csv_cut_in_mid_line_ends_as_one_that_was_not(network, images, labels, tmp_path):
    ranking = Ranking(network, "l2", ["hidden"], [])
    batches, path = [(images, labels)], tmp_path / "uniform.csv"

    def measure():
        measure_uniform(network, batches, [0.3, 0.6], ranking, path, torch.device("cpu"))
        return path.read_text()

    whole = measure()
    # within the last number, after a row, within the names
    for left in (len(whole) - 5, whole.rindex("\n", 0, -1) + 1, 9):
        path.write_text(whole[:left])
        assert measure() == whole
