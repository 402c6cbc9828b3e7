import pytest
import torch
from data_files import load_data

from psvit.data.loading import Repeats
from psvit.errors import UserError


def batches(loader, seed=0):
    torch.manual_seed(seed)
    return [(x, y) for x, y in loader]


def same(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d)
        for (a, b), (c, d) in zip(first, second, strict=True)
    )


def test_same_seed_same_batches():
    first = batches(load_data("digits", seed=3).train_dataloader())
    assert same(first, batches(load_data("digits", seed=3).train_dataloader()))
    other_order = batches(load_data("digits", seed=4).train_dataloader())
    assert not torch.equal(first[0][1], other_order[0][1])
    other_augmentation = batches(load_data("digits", seed=3).train_dataloader(), seed=1)
    assert torch.equal(first[0][1], other_augmentation[0][1])
    assert not torch.equal(first[0][0], other_augmentation[0][0])


def test_epochs_differ():
    loader = load_data("digits").train_dataloader()
    assert not same(batches(loader), batches(loader))


def test_evaluating_leaves_the_random_state_alone():
    data = load_data("digits")
    before = torch.get_rng_state()
    for loader in (data.val_dataloader(), data.test_dataloader(), data.calibration_dataloader(20)):
        for _ in loader:
            pass
    assert torch.equal(before, torch.get_rng_state())


def test_evaluation_reads_each_image_once_in_order():
    data = load_data("digits", eval_batch_size=100)
    loaded = batches(data.test_dataloader())
    assert [len(y) for _, y in loaded] == [100, 100, 100, 59]
    assert torch.equal(torch.cat([y for _, y in loaded]), data.test.labels)
    assert torch.equal(loaded[1][0][7], data.test[107][0])


def test_a_shuffled_split_is_the_same_images_always_in_one_order():
    data = load_data("digits")
    plain, first, second = (
        torch.cat([y for _, y in data.val_dataloader(100, shuffled=shuffled)])
        for shuffled in (False, True, True)
    )
    assert torch.equal(first, second) and not torch.equal(first, plain)
    assert torch.equal(first.sort().values, plain.sort().values)


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [
        (1149, [1149]),  # 1 is left: BatchNorm cannot normalise it
        (64, [64] * 17 + [62]),
        (550, [550, 550, 50]),
        (219, [219] * 5),  # 55 are left: mixup cannot pair them
        (5000, [1150]),
    ],
)
def test_an_odd_last_training_batch_is_dropped(batch_size, expected):
    loader = load_data("digits", batch_size=batch_size).train_dataloader()
    assert [len(y) for _, y in loader] == expected
    assert len(loader) == len(expected)


def test_workers_load_the_same(folder):
    cfg = {"root": str(folder), "image_size": 32, "eval_batch_size": 3}
    alone = load_data("image_folder", **cfg).test_dataloader()
    workers = load_data("image_folder", **cfg, num_workers=2).test_dataloader()
    assert same(batches(alone), batches(workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_breaks_while_a_run_reads_it(folder, workers):
    data = load_data("image_folder", root=str(folder), image_size=32, num_workers=workers)
    (folder / "train" / "dog" / "07.webp").write_bytes(b"RIFF")
    with pytest.raises(UserError) as error:
        for _ in (0, 1):
            list(data.train_dataloader())
            list(data.val_dataloader())
    message = str(error.value)
    assert message.startswith(f"dataset.root={folder}: the image train/dog/07.webp cannot be read")


def test_repeated_images_come_in_an_order_of_the_seed_and_the_epoch():
    def order(seed, epoch):
        sampler = Repeats(range(40), 2, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    first = order(0, 0)
    # each twice in a row, and as many in all as there are images
    assert first[::2] == first[1::2] and len(first) == 40
    assert len({tuple(order(seed, epoch)) for seed in (0, 1, 2) for epoch in (0, 1)}) == 6
    assert first == order(0, 0) == list(Repeats(range(40), 2, 0))
