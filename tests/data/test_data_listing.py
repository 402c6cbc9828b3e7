"""Which files of a folder are read: against torchvision's list, and counted by hand."""

import pytest
from data_files import load_data, write_image
from torchvision.datasets import ImageFolder

from psvit.data import files
from psvit.data.sources import read_source
from psvit.errors import UserError


def listed(root, part="train"):
    """The paths below ``root/part`` of what is read, and their labels."""
    found = getattr(read_source(load_data("image_folder", root=str(root), image_size=32).cfg), part)
    paths = [path.relative_to(root / part).as_posix() for path in found.images]
    return list(zip(paths, found.labels.tolist(), strict=True))


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_a_plain_folder_is_listed_as_torchvision_lists_it(folder):
    # names that sort differently with a folder's separator after them
    for name in ("cat/b/1.png", "cat/b-/2.PNG", "cat/b/a/3.jpg", "dog/a.b/4.png", "dog/note.txt"):
        write_image(folder / "train" / name.replace(".txt", ".png"), 70)
    (folder / "train" / "dog" / "note.txt").touch()
    samples = ImageFolder(folder / "train").samples
    assert listed(folder) == [
        (path.removeprefix(f"{folder}/train/"), label) for path, label in samples
    ]


def test_hidden_files_and_folders_are_left_out(folder):
    before = listed(folder)
    for name in (".ipynb_checkpoints/00-checkpoint.png", "._00.png", "in/.a/b/c.png", "in/.c.png"):
        write_image(folder / "train" / "cat" / name, 70)
    write_image(folder / "train" / ".cat" / "a.png", 70)
    assert listed(folder) == before
    # what the root itself lies in does not count
    hidden = folder.parent / ".cache" / "images"
    hidden.parent.mkdir()
    folder.rename(hidden)
    assert listed(hidden) == before


def test_links_that_lead_back_are_not_followed(folder):
    before = listed(folder)
    (folder / "train" / "cat" / "loop").symlink_to(folder / "train" / "cat")
    (folder / "train" / "cat" / "up").symlink_to("..")
    (folder / "train" / "cat" / "self").symlink_to("self")
    (folder / "train" / "dog" / "in").mkdir()
    (folder / "train" / "dog" / "in" / "again").symlink_to(folder / "train" / "dog")
    (folder / "train" / "dog" / "same").symlink_to("in")
    assert listed(folder) == before


def test_links_to_elsewhere_are_followed_once(folder):
    before = listed(folder)
    far = folder.parent / "far"
    write_image(far / "deep" / "1.png", 70)
    write_image(far / "2.png", 71)
    (far / "deep" / "loop").symlink_to(far)
    (far / "back").symlink_to(folder / "train" / "cat")
    for name, target in (("far", far), ("too", far), ("link.png", far / "2.png")):
        (folder / "train" / "cat" / name).symlink_to(target)
    found = [entry for entry in listed(folder) if entry not in before]
    assert len(found) == 3 and ("cat/link.png", 0) in found
    # the other two by one of the two links
    ends = sorted(path.removeprefix("cat/far/").removeprefix("cat/too/") for path, _ in found)
    assert ends == ["2.png", "cat/link.png", "deep/1.png"]


def test_a_class_may_be_a_link(folder):
    before = listed(folder)
    (folder / "train" / "cat").rename(folder.parent / "cats")
    (folder / "train" / "cat").symlink_to(folder.parent / "cats")
    (folder.parent / "cats" / "loop").symlink_to(folder / "train" / "cat")
    assert listed(folder) == before


def test_images_that_are_not_read_are_told_in_one_line(folder, caplog):
    for name in ("train/cat/a.gif", "train/dog/in/b.GIF", "test/cat/c.jp2", "train/d.avif"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    for name in ("train/cat/.e.gif", "train/cat/notes.txt", "train/labels.csv", "f.png"):
        (folder / name).touch()
    write_image(folder / "train" / "loose.png", 70)
    write_image(folder / "test" / "other.jpg", 71)
    data = load_data("image_folder", root=str(folder), image_size=32)
    (told,) = warnings(caplog)
    assert told.startswith(f"6 images under {folder} are left out: 4 of other types ")
    assert "(.avif, .gif, .jp2)" in told and "2 in no class folder (train/loose.png)" in told
    assert ".jpg, .jpeg, .png" in told
    assert len(data.train) + len(data.val) == 30 and len(data.test) == 10


def test_other_files_are_not_told(folder, caplog):
    for name in ("train/cat/notes.txt", "train/labels.csv", "train/cat/.a.gif", "train/._b.png"):
        (folder / name).touch()
    load_data("image_folder", root=str(folder), image_size=32)
    assert not warnings(caplog)


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    (folder / "train" / "cat" / "closed").mkdir()

    def scandir(path, real=files.os.scandir):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr("psvit.data.listing.os.scandir", scandir)
    with pytest.raises(UserError, match="the folder train/cat/closed cannot be read .*denied"):
        load_data("image_folder", root=str(folder), image_size=32)
