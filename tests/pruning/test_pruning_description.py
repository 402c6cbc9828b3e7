"""model.yaml says what was written, or is refused; nothing in it is run."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from psvit.pruning.description import from_yaml, reason, to_yaml

WRITTEN = {
    "model": {"name": "a", "depth": [1, 2], "ratio": 4.0},
    "plan": {"stage1.block1.hidden": [0, 2], "stage1.stream": [1]},
    "dtype": "float16",
    "classes": ["é", "\udcff", "1"],
    "metrics": {"top1": 97.75, "loss": 1e-5, "images": 80, "nothing": None},
    "provenance": {"modified": True, "date": "2026-01-31T12:00:00+00:00"},
    "sha256": {"weights": "0" * 64},
}
FACTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def text():
    return to_yaml(WRITTEN)


@settings(deadline=None, max_examples=60)
@given(facts=FACTS)
def test_facts_come_back_as_they_were(facts):
    # twice the same list: YAML would write an alias
    written = {**WRITTEN, "facts": facts, "again": facts, "format": "a fact cannot choose it"}
    found = from_yaml(to_yaml(written))
    assert found.pop("format") == 1
    assert len(found["sha256"].pop("description")) == 64
    del written["format"]
    assert found == written


def test_the_text_is_ascii_and_starts_with_its_format(text):
    assert text.isascii() and text.startswith("format: 1\n")
    assert text.splitlines()[-1].startswith("sha256: ") or text.endswith("}\n")


def test_a_text_that_is_cut_short_is_refused(text):
    # without the last newline nothing is lost
    assert from_yaml(text[:-1]) == from_yaml(text)
    for length in range(len(text) - 1):
        with pytest.raises(ValueError, match="."):
            from_yaml(text[:length])


@settings(deadline=None, max_examples=150)
@given(
    position=st.floats(0, 1),
    removed=st.integers(0, 3),
    added=st.text(st.characters(max_codepoint=255), max_size=3),
)
@example(position=0.75, removed=1, added="1")
def test_an_edited_text_says_the_same_or_is_refused(text, position, removed, added):
    at = int(position * len(text))
    try:
        found = from_yaml(text[:at] + added + text[at + removed :])
    except ValueError as error:
        assert str(error)
    else:
        original = from_yaml(text)
        # another hash of the weights is refused where they are read, beside the file
        original["sha256"]["weights"] = found["sha256"]["weights"]
        assert repr(found) == repr(original)


def test_layout_does_not_count(text):
    original = from_yaml(text)
    assert from_yaml(text.replace("\n", "\r\n")) == original
    assert from_yaml(f"# a comment\n\n{text}\n") == original
    lines = text.splitlines(keepends=True)
    assert from_yaml("".join([*lines[1:], lines[0]])) == original


def test_ten_lines_that_stand_for_a_billion_values(text):
    lines = ["a0: &a0 [1,1,1,1,1,1,1,1,1,1]"]
    lines += [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(ValueError, match="alias"):
        from_yaml("\n".join([text, *lines]))


def test_what_yaml_would_run_is_not_run(text, tmp_path):
    path = f"!!python/object/apply:pathlib.Path ['{tmp_path}/ran']"
    with pytest.raises(ValueError, match="not the YAML"):
        from_yaml(f"{text}run: !!python/object/apply:pathlib.Path.touch [{path}]\n")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "line", ["odd: {1: a, b: c}", "odd: {2001-01-01: a}", "odd: !!binary YQ==", "odd: .nan"]
)
def test_values_that_are_never_written_are_refused(text, line):
    with pytest.raises(ValueError, match="edited"):
        from_yaml(f"{text}{line}\n")


def test_a_reason_is_one_short_line_that_steers_no_terminal():
    assert reason(ValueError("a\n\tb \x1b[2J\x07\u202e c")) == "a b [2J c"
    assert reason(MemoryError()) == "MemoryError"
    assert len(reason(ValueError("x" * 10**6))) < 400
