import io
import logging
from types import SimpleNamespace

import torch
from rich.console import Console

from psvit.console import progress
from psvit.training.callbacks import EpochLines


def drawn(terminal):
    file = io.StringIO()
    with progress(Console(file=file, force_terminal=terminal, width=120)) as bar:
        task = bar.add_task("sensitivity", total=None, images=32)
        for done in range(1, 5):
            bar.update(task, completed=done, total=4)
    return file.getvalue()


def test_the_bar_tells_what_is_done_and_how_fast():
    text = drawn(terminal=True)
    assert "4/4" in text and "images/s" in text


def test_no_bar_without_a_terminal():
    assert drawn(terminal=False).strip() == ""


def test_epochs_are_lines_of_the_log(caplog):
    lines, module = EpochLines(), SimpleNamespace(prefix="base")
    trainer = SimpleNamespace(is_global_zero=True, current_epoch=2, max_epochs=14)
    # Lightning keeps the metrics of the last validation: the second epoch has none of its own
    validated = {"base/val_top1": torch.tensor(0.915)}
    with caplog.at_level(logging.INFO):
        for validates, metrics in ((True, validated), (False, validated), (True, {})):
            trainer.callback_metrics = metrics
            lines.on_train_epoch_start(trainer, module)
            if validates:
                lines.on_validation_epoch_end(trainer, module)
            lines.on_train_epoch_end(trainer, module)
    first, second, third = caplog.messages
    assert first == "base: epoch 3 of 14, validation top-1 91.50 %"
    assert second == third == "base: epoch 3 of 14"
