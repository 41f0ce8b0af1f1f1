"""Files of every format, and one clear error at the door for every bad input."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from tutelage.data.readers import load_records, load_sources, split_weight
from tutelage.records import Demonstration, user

GOOD = [{"prompt": "Größe?", "completion": "1,80 📏"}, {"prompt": "q\u2028r", "completion": "a"}]


def jsonl(rows) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def write(tmp_path: Path):
    def make(text: str, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return make


def answers(path: Path) -> list[str]:
    return [r.messages[-1].content for r in load_records(path).records if isinstance(r, Demonstration)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson", "a.json"])
def test_json_lines_under_every_name(write, name: str):
    assert answers(write(jsonl(GOOD), name)) == ["1,80 📏", "a"]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_lists(write, name: str, indent):
    assert answers(write(json.dumps(GOOD, indent=indent, ensure_ascii=False), name)) == ["1,80 📏", "a"]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv_with_quotes_line_breaks_and_a_byte_order_mark(write, name: str):
    path = write('\ufeffprompt,completion\r\n"say ""hi"",\r\nplease",hi\r\nGröße?,"1,80"\r\n', name)
    records = load_records(path).records
    assert [tuple(m.content for m in r.messages) for r in records] == [
        ('say "hi",\r\nplease', "hi"),
        ("Größe?", "1,80"),
    ]  # type: ignore[union-attr]


@pytest.mark.parametrize("zipped", [False, True])
def test_parquet(tmp_path: Path, zipped: bool):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "1,80"}], "id": None}]
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), path)
    if zipped:
        path = path.rename(tmp_path / "b.parquet")
        path = Path(str(path) + ".gz")
        path.write_bytes(gzip.compress((tmp_path / "b.parquet").read_bytes()))
    assert answers(path) == ["1,80"]


def test_a_folder_gives_all_its_files_in_order(write, tmp_path: Path):
    write(jsonl(GOOD[:1]), "b/x.jsonl")
    write(jsonl(GOOD[1:]), "a.json")
    write("notes", "README.md")
    write("", ".hidden.jsonl")
    loaded = load_records(tmp_path)
    assert [r.messages[-1].content for r in loaded.records] == ["a", "1,80 📏"]  # type: ignore[union-attr]
    assert loaded.rows == 2


def test_a_folder_of_different_records_is_refused_unless_a_kind_serves_all(write, tmp_path: Path):
    write(jsonl(GOOD), "a.jsonl")
    write(jsonl([{"prompt": "only"}]), "b.jsonl")
    with pytest.raises(ValueError, match=r"(?s)its files hold different records.*x demonstration.*x prompt"):
        load_records(tmp_path)
    assert [p.text for p in load_records(tmp_path, "prompt").records] == ["Größe?", "q\u2028r", "only"]  # type: ignore[union-attr]


def test_what_was_read_is_described(write):
    path = write(jsonl([{**GOOD[0], "source": "me"}, {"prompt": "x"}]))
    assert load_records(path, bad_rows="skip").describe() == (
        f"{path}: 2 rows, prompt/completion -> 1 x demonstration; 1 bad rows skipped; keys not read: source"
    )


# ---- bad input


def error(path: Path | str, **options) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is the test
        load_records(path, **options)
    return str(caught.value)


def test_missing_empty_and_unknown_files(write, tmp_path: Path):
    assert error(tmp_path / "no.jsonl") == f"{tmp_path}/no.jsonl: no such file or folder"
    assert error(write("")).endswith("data.jsonl: the file is empty")
    assert error(write("\n\n")).endswith("data.jsonl: there are no rows")
    assert error(write("[]", "a.json")).endswith("a.json: there are no rows")
    assert error(write("prompt,completion\n", "a.csv")).endswith("a.csv: there are no rows")
    assert "a.tsv: unknown format; known: .jsonl, .ndjson, .json, .csv, .parquet, each also with .gz" in error(
        write("x", "a.tsv")
    )
    (tmp_path / "folder").mkdir()
    assert "folder: no data files in this folder" in error(tmp_path / "folder")


def test_broken_json_names_its_line_and_can_be_skipped(write):
    path = write(jsonl(GOOD * 8) + '{"prompt": "x", "completion"\n' + jsonl(GOOD))
    assert f"1 of 19 rows are bad:\n  {path}:17: not valid JSON (Expecting ':' delimiter at column 29)" in error(path)
    loaded = load_records(path, bad_rows="skip")
    assert len(loaded.records) == 18
    assert loaded.rows == 19
    assert loaded.skipped == (f"{path}:17: not valid JSON (Expecting ':' delimiter at column 29)",)


@pytest.mark.parametrize(("text", "where"), [
    ('[\n {"prompt": "a", "completion": "b"},\n {"prompt": }\n]', "a.json:3: not valid JSON (Expecting value at column 13)"),
    ('[\n {"prompt": "a", "completion": "b"}\n {"prompt"', "a.json:3: not valid JSON (expected , or ] in the list)"),
    ('[{"prompt": "a", "completion": "b"}', "a.json:1: not valid JSON (expected , or ] in the list)"),
    ('[{"prompt": "a", "completion": "b"}]\nx', "a.json:2: not valid JSON (text behind the end of the list)"),
])  # fmt: skip
def test_a_broken_json_list_names_its_line(write, text: str, where: str):
    assert where in error(write(text, "a.json"))


def test_a_bad_row_of_a_json_list_names_the_line_it_begins_on(write):
    rows = [*GOOD, {"prompt": "x", "completion": 3}]
    assert "a.json:10: key `completion`: int 3; allowed: a string" in error(write(json.dumps(rows, indent=2), "a.json"))


def test_broken_files(write, tmp_path: Path):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "\xff"}')
    assert "a.jsonl: not UTF-8 text" in error(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(b"not gzip")
    assert "b.jsonl.gz: not a whole gzip file" in error(tmp_path / "b.jsonl.gz")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(jsonl(GOOD * 100).encode())[:-20])
    assert "c.jsonl.gz: not a whole gzip file" in error(tmp_path / "c.jsonl.gz")
    pytest.importorskip("pyarrow")
    assert "d.parquet: not a Parquet file" in error(write("x" * 50, "d.parquet"))
    assert "e.csv:2: its number of cells is not the header's 2" in error(
        write("prompt,completion\nx,y,z\na,b\n", "e.csv")
    )
    assert "f.csv:3: not valid CSV" in error(write('prompt,completion\na,b\nx,"y\n', "f.csv"))


def test_unknown_keys_list_the_known_sets(write):
    message = error(write(jsonl([{"promt": "x", "answr": "y"}])))
    assert ":1: unknown keys: promt, answr; a row needs one of these sets:" in message
    assert "\n  prompt, completion  (prompt/completion: demonstration)" in message


@pytest.mark.parametrize(("row", "problem"), [
    ({"prompt": "x"}, "key `completion`: missing; the file has the shape prompt/completion (prompt, completion)"),
    ({"prompt": "x", "completion": None}, "key `completion`: missing"),
    ({"prompt": "", "completion": "a"}, "key `prompt`: empty; allowed: a string that is not blank"),
    ({"prompt": "x", "completion": " \n"}, "key `completion`: empty"),
    ({"prompt": 5, "completion": "a"}, "key `prompt`: int 5; allowed: a string"),
    ({"prompt": "x", "completion": ["a"]}, 'key `completion[0]`: str \'a\'; allowed: {"role": ..., "content": ...}'),
    ({"prompt": [], "completion": "a"}, "key `prompt`: list []; allowed: a list of"),
    ({"prompt": [{"role": "bot", "content": "x"}], "completion": "a"}, "key `prompt[0].role`: str 'bot'; allowed: system, user, assistant, tool"),
    ({"prompt": [{"role": "user"}], "completion": "a"}, "key `prompt[0].content`: empty"),
    ({"prompt": [{"role": "user", "content": [1]}], "completion": "a"}, "key `prompt[0].content`: list [1]; allowed: a string"),
    ({"prompt": [{"role": "system", "content": "x"}], "completion": "a"}, "key `prompt`: no user message; roles: system"),
    ({"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "completion": "a"}, "key `prompt`: ends with an assistant message"),
    ({"prompt": "x", "completion": [{"role": "user", "content": "a"}]}, "key `completion`: roles user behind the prompt"),
    ({"prompt": "x", "completion": "a", "id": [1]}, "key `id`: list [1]; allowed: a string"),
    ([1], "expected an object {...}, got list"),
])  # fmt: skip
def test_a_bad_row_says_line_key_got_and_allowed(write, row, problem: str):
    path = write(jsonl([*GOOD, row]))
    assert f"{path}:3: {problem}" in error(path)
    assert len(load_records(path, bad_rows="skip").records) == 2


@pytest.mark.parametrize(("row", "problem"), [
    ({"prompt": "x", "chosen": "a", "rejected": "a"}, "keys `chosen`, `rejected`: they are equal"),
    ({"prompt": "x", "chosen": "a", "rejected": ""}, "key `rejected`: empty"),
    ({"prompt": "x", "chosen": "a", "rejected": "b", "preference": 1.5}, "key `preference`: float 1.5; allowed: a number from 0 to 1"),
    ({"prompt": "x", "chosen": "a", "rejected": "b", "weight": "much"}, "key `weight`: str 'much'; allowed: a finite number"),
    ({"prompt": "x", "chosen": "a", "rejected": "b", "margin": float("nan")}, "key `margin`: float nan"),
])  # fmt: skip
def test_bad_pairs(write, row, problem: str):
    path = write(jsonl([{"prompt": "x", "chosen": "a", "rejected": "b"}, row]))
    assert f"{path}:2: {problem}" in error(path)


@pytest.mark.parametrize(("first", "row", "problem"), [
    ({"prompt": "x", "completion": "a", "label": True}, {"prompt": "x", "completion": "a", "label": "maybe"}, "key `label`: str 'maybe'; allowed: true/false, 1/0 or yes/no"),
    ({"question": "x", "answer": "a #### 1"}, {"question": "x", "answer": "a ####"}, "key `answer`: nothing behind `####`"),
    ({"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]}, {"conversations": [{"from": "alien", "value": "x"}]}, "key `conversations[0].from`: str 'alien'; allowed: human, user, gpt"),
    ({"chosen": "The sky is blue", "rejected": "The sky is red"}, {"chosen": "Blue", "rejected": "Red"}, "no common prompt: two texts without a `prompt` key"),
    ({"chosen": "The sky is blue", "rejected": "The sky is red"}, {"chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": "\n\nHuman: x\n\nAssistant: z"}, None),
    ({"chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": "\n\nHuman: x\n\nAssistant: z"}, {"chosen": "The sky is blue", "rejected": "The sky is red"}, "their values have not the shape hh-rlhf"),
    ({"prompt": {"messages": [{"role": "user", "content": "x"}]}, "answer": {"text": "y"}, "score": 1}, {"prompt": {"messages": [{"role": "user", "content": "x"}]}, "answer": {"text": "y"}, "score": 3, "scale": [1, 2]}, "key `score`: int 3; allowed: a number from 1 to 2"),
    ({"prompt": {"messages": [{"role": "user", "content": "x"}]}, "answer": {"text": "y"}, "score": 1}, {"prompt": {"messages": [{"role": "user", "content": "x"}]}, "answer": {"text": "y"}, "score": 3, "scale": [2]}, "key `scale`: list [2]; allowed: [lowest, highest]"),
    ({"prompt": {"messages": [{"role": "user", "content": "x"}]}, "answers": [{"text": "y"}]}, {"prompt": {"messages": [{"role": "user", "content": "x"}]}, "answers": [{"text": ""}]}, "key `text`: empty"),
    ({"prompt": {"messages": [{"role": "user", "content": "x"}]}, "answers": [{"text": "y"}]}, {"prompt": {}, "answers": [{"text": "y"}]}, "key `prompt.messages`: NoneType None"),
    ({"prompt": {"messages": [{"role": "user", "content": "x"}]}, "answers": [{"text": "y"}]}, {"prompt": {"messages": [{"role": "user", "content": "x"}]}, "answers": [{"text": "y", "tokens": [1.5]}]}, "key `answers[0].tokens`: list [1.5]; allowed: a list of token ids"),
])  # fmt: skip
def test_bad_rows_of_other_shapes(write, first, row, problem: str | None):
    path = write(jsonl([first, row]))
    if problem is None:
        assert len(load_records(path).records) == 2
    else:
        assert f"{path}:2: " in error(path)
        assert problem in error(path)


def test_bad_rows_of_hh_dialogues_are_skipped_by_line():
    path = Path(__file__).parent / "fixtures" / "hh_rlhf_bad.jsonl"
    loaded = load_records(path, bad_rows="skip")
    assert [line.partition(".jsonl:")[2].partition(";")[0] for line in loaded.skipped] == [
        "2: keys `chosen`, `rejected`: no common prompt: after 1 equal turns there follow 2 and 1 turns",
        "3: key `chosen`: its last turn is empty",
        "4: keys `chosen`, `rejected`: they are equal",
        "5: keys `chosen`, `rejected`: no common prompt: after 0 equal turns there follow 2 and 2 turns",
    ]
    assert len(loaded.records) == 1


def test_the_first_ten_and_the_total(write):
    path = write(jsonl([*GOOD, *[{"prompt": "x", "completion": ""}] * 23]))
    lines = error(path).splitlines()
    assert lines[0] == f"{path}: 23 of 25 rows are bad; the first 10:"
    assert len(lines) == 12
    assert lines[10].startswith(f"  {path}:12: ")
    assert lines[11] == "repair them, or leave them out with --bad-rows skip"


def test_no_usable_row_left_is_always_an_error(write):
    path = write(jsonl([{"prompt": "x", "completion": ""}] * 3))
    assert error(path, bad_rows="skip").startswith(
        f"{path}: no usable row is left of 3\n  {path}:1: key `completion`: empty"
    )


def test_a_shape_that_cannot_serve_says_what_is_needed(write):
    message = error(write(jsonl(GOOD)), kind="comparison")
    assert (
        "its rows have the shape prompt/completion (prompt, completion), which gives no comparison; needed: " in message
    )
    assert "prompt/chosen/rejected (prompt, chosen, rejected)" in message


def test_unknown_settings(write):
    assert error(write(jsonl(GOOD)), kind="pairs") == (
        "kind: 'pairs'; allowed: None, prompt, demonstration, comparison, rating, document, group, critique"
    )
    assert error(write(jsonl(GOOD)), bad_rows="ignore") == "bad_rows: 'ignore'; allowed: error, skip"


def test_a_hub_name_offline_names_both_readings(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("datasets")
    message = error("nobody/no-such-data")
    assert message.startswith("nobody/no-such-data: no such file or folder, and it cannot be read as a hub data set")


def test_optional_libraries_that_are_missing_name_the_extra(write, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'tutelage[data]'" in error("nobody/no-such-data")
    assert "pip install 'tutelage[data]'" in error(write("PAR1", "a.parquet"))


def test_hub_rows_are_read_like_a_file(monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return datasets.Dataset.from_list([{"question": "1+1?", "answer": "#### 2"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_records("openai/gsm8k/main:test").records == (user("1+1?", solution="2"),)
    load_records("someone/data")
    assert asked == [("openai/gsm8k", "main", "test"), ("someone/data", None, "train")]


# ---- several sources


def test_weights_of_sources(write):
    first, second = write(jsonl(GOOD), "a.jsonl"), write(jsonl(GOOD), "b=2.jsonl")
    loaded = load_sources([f"{first}=0.3", f"{second}=2"])
    assert [(one.source, one.weight) for one in loaded] == [(str(first), 0.3), (str(second), 2.0)]
    assert [one.weight for one in load_sources([str(first), str(second)])] == [None, None]
    with pytest.raises(ValueError, match="give every source a weight"):
        load_sources([f"{first}=0.3", str(second)])


def test_an_existing_name_with_an_equals_sign_is_a_path(write, tmp_path: Path):
    path = write(jsonl(GOOD), "part=1/data.jsonl")
    assert split_weight(str(path)) == (str(path), None)
    assert split_weight(str(tmp_path / "part=1")) == (str(tmp_path / "part=1"), None)
    assert split_weight(f"{tmp_path / 'part=1'}=0.5") == (str(tmp_path / "part=1"), 0.5)


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "much"])
def test_bad_weights(write, weight: str):
    with pytest.raises(ValueError, match=f"the weight is '{weight}'; allowed: a positive number"):
        load_sources([f"{write(jsonl(GOOD))}={weight}"])


def test_sources_of_different_records_are_refused(write):
    first, second = write(jsonl(GOOD), "a.jsonl"), write(jsonl([{"prompt": "x"}]), "b.jsonl")
    with pytest.raises(ValueError, match=r"the sources hold different records.*x demonstration.*x prompt"):
        load_sources([str(first), str(second)])
    assert [one.kind for one in load_sources([str(first), str(second)], "prompt")] == ["prompt", "prompt"]
    with pytest.raises(ValueError, match="no source given"):
        load_sources([])
