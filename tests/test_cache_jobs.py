"""Jobs that run at the same time do a stage once, whatever becomes of the one that does it."""

import json

import pytest
from cache_jobs import Jobs


@pytest.fixture
def jobs(tmp_path):
    jobs = Jobs(tmp_path)
    yield jobs
    jobs.end()


def test_two_jobs_that_ask_for_the_same_make_it_once(jobs):
    jobs.start("first", {"seed": 0})
    jobs.until_making("first")
    jobs.start("second", {"seed": 0})
    jobs.until_waiting("second")
    assert not jobs.read("second.got")
    jobs.let("first")
    jobs.finish()
    assert json.loads(jobs.read("first.got")) == json.loads(jobs.read("second.got"))
    assert json.loads(jobs.read("second.got"))[1] == "first"
    assert not jobs.read("second.making")
    log = jobs.read("second.log")
    assert log.count("waiting for another job that trains the same base network") == 1
    assert "waiting" not in jobs.read("first.log")
    # and it counts as one use
    (entry,) = jobs.root.glob("base/*")
    assert len((entry / "uses.txt").read_text().splitlines()) == 1


def test_jobs_that_ask_for_different_things_do_not_wait(jobs):
    for name, key, stage in (
        ("first", {"seed": 0}, "base"),
        ("second", {"seed": 1}, "base"),
        ("third", {"seed": 0}, "sensitivity"),
    ):
        jobs.start(name, key, stage)
    # all of them at once, before any may end
    for name in ("first", "second", "third"):
        jobs.until_making(name)
    for name in ("first", "second", "third"):
        jobs.let(name)
    jobs.finish()
    got = [json.loads(jobs.read(f"{name}.got")) for name in ("first", "second", "third")]
    assert [result for _, result in got] == ["first", "second", "third"]
    assert len({folder for folder, _ in got}) == 3


def test_a_job_goes_on_from_what_a_killed_one_left(jobs):
    killed = jobs.start("killed", {"seed": 0})
    jobs.until_making("killed")
    jobs.start("heir", {"seed": 0})
    jobs.until_waiting("heir")
    jobs.until(lambda: list(jobs.root.glob("base/*.partial/by-killed")))
    killed.kill()
    jobs.until_making("heir")
    assert json.loads(jobs.read("heir.making")) == ["by-killed"]
    jobs.let("heir")
    jobs.finish()
    folder, result = json.loads(jobs.read("heir.got"))
    assert result == "heir"
    assert [path.name for path in jobs.root.glob("base/*")] == [folder.rpartition("/")[2]]
