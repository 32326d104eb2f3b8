import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from training.data.corpora import CorpusError
from training.data.formats.common import Reading, json_items, lines, single_file


class Item(BaseModel):
    parts: list[int]


def write(tmp_path, content):
    file = tmp_path / "corpus.txt"
    file.write_bytes(content)
    return file


def test_lines_end_at_line_feeds_alone(tmp_path):
    seen = []
    content = "\ufeffa\u2028b\x85\x0b\r\n\nlast".encode()
    found = list(lines(write(tmp_path, content), Reading(advance=seen.append)))
    assert [line for _, line in found] == ["a\u2028b\x85\x0b", "", "last"]
    assert [place for place, _ in found] == [f"corpus.txt, line {n}" for n in (1, 2, 3)]
    assert sum(seen) == len(content)


def test_bytes_that_are_not_utf_8_name_their_line(tmp_path):
    with pytest.raises(CorpusError, match=r"corpus\.txt, line 2: not UTF-8"):
        list(lines(write(tmp_path, "good\n患者".encode() + b"\xff"), Reading()))


@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=3)), min_size=1), st.sampled_from([None, 1]))
def test_a_list_and_lines_hold_the_same_items(tmp_path_factory, items, indent):
    folder = tmp_path_factory.mktemp("json")
    (folder / "list").write_text(json.dumps(items, indent=indent), encoding="utf-8")
    (folder / "lines").write_text("\n".join(json.dumps(i, ensure_ascii=False) for i in items) + "\n", encoding="utf-8")
    for name in ("list", "lines"):
        assert [item for _, item in json_items(folder / name, Reading())] == items


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'[\n{"text": secret}]', 2),
        (b'{"a": 1}\n\n{"b": secret}', 3),
        (b"secret", 1),
        (b"9" * 5000, 1),
        (b"[" * 100_000, 1),
        (b'{"a": 1}\n' + b"9" * 5000, 2),
        (b'{"a": 1}\n' + b"[" * 100_000, 2),
    ],
)
def test_what_is_not_json_names_its_line(tmp_path, content, line):
    with pytest.raises(CorpusError, match=f"line {line}: not JSON") as error:
        list(json_items(write(tmp_path, content), Reading()))
    assert "secret" not in str(error.value)


def test_neither_what_is_bad_nor_a_member_that_is_none_of_ours_is_quoted():
    class Item(BaseModel):
        infons: dict[str, str]

    def read(given):
        try:
            Item.model_validate(given)
        except ValidationError as wrong:
            Reading().invalid("a.json", wrong)

    with pytest.raises(CorpusError, match=r"^a\.json, infons\.…: infons\.…: input should be a valid string") as error:
        read({"infons": {"患者 zq17": 1}})
    assert error.value.__suppress_context__  # which would quote it


def test_bad_stops_or_counts():
    with pytest.raises(CorpusError, match=r"a\.txt, line 2: wrong; fix it, or leave it out with --skip-bad"):
        Reading().bad("a.txt, line 2", "wrong", "fix it")
    reading = Reading(skip_bad=True)
    reading.bad("a.txt, line 2", "wrong", "fix it")
    assert reading.left_out == {"wrong": 1}


def test_an_invalid_item_names_its_field_and_not_its_value():
    with pytest.raises(ValidationError) as invalid:
        Item.model_validate({"parts": [1, "secret"]})
    with pytest.raises(CorpusError, match=r"x, item 3, parts\.1: parts: ") as error:
        Reading().invalid("x, item 3", invalid.value)
    assert "secret" not in str(error.value)
    reading = Reading(skip_bad=True)
    reading.invalid("x, item 3", invalid.value)
    assert reading.left_out.total() == 1


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(CorpusError, match="INPUT"):
        single_file(tmp_path)
