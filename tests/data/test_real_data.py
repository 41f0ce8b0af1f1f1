"""The readers on real public data: counts, and single rows read by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tutelage.data.chat import Chat
from tutelage.data.collate import comparisons
from tutelage.data.readers import load_records


def test_hh_rlhf_has_2303_usable_pairs(shared_data: Any):
    path = shared_data("hh-rlhf-harmless-test", "test.jsonl.gz")
    with pytest.raises(ValueError, match="9 of 2312 rows are bad"):
        load_records(path)
    loaded = load_records(path, bad_rows="skip")
    assert (loaded.shape, loaded.kind, loaded.rows, len(loaded.records)) == ("hh-rlhf", "comparison", 2312, 2303)
    lines = {line.partition(".gz:")[2].partition(":")[0]: line for line in loaded.skipped}
    assert [n for n, line in lines.items() if "no common prompt" in line] == ["1255", "1689", "1951", "1953", "2037"]
    assert [n for n, line in lines.items() if "its last turn is empty" in line] == ["87", "517", "926", "1104"]
    first: Any = loaded.records[0]
    assert [m.role for m in first.prompt.messages] == ["user", "assistant", "user", "assistant", "user"]
    assert first.prompt.text == "okay some of these do not have anything to do with pens"
    assert first.chosen.text.startswith("No, sorry!  All of these involve a pen, the point is")
    assert first.rejected.text.endswith("unzip their zipper. It’s really funny.")


def test_gsm8k_solutions(shared_data: Any):
    loaded = load_records(shared_data("gsm8k", "test.jsonl"))
    solutions = [p.solution for p in loaded.records]  # type: ignore[union-attr]
    assert len(solutions) == 1319
    assert solutions[:3] == ["18", "3", "70000"]
    assert all(float(s) == float(s) for s in solutions), "every one is a plain number"


def test_polite_and_impolite_answers(shared_data: Any):
    path = shared_data("raschka-instructions", "instruction-data-with-preference.json")
    loaded = load_records(path, bad_rows="skip")
    assert (loaded.shape, len(loaded.records), len(loaded.skipped)) == ("instruction/chosen/rejected", 1094, 6)
    assert loaded.skipped[0].startswith(f"{path}:856: keys `chosen`, `rejected`: they are equal")
    assert path.read_text(encoding="utf-8").splitlines()[855] == "    {"
    assert (
        len(load_records(shared_data("raschka-instructions", "instruction-data.json"), "demonstration").records) == 1100
    )


def test_prompts_of_a_csv_with_other_columns(shared_data: Any):
    loaded = load_records(shared_data("xstest", "xstest_prompts.csv"))
    assert (len(loaded.records), loaded.ignored_keys) == (450, ("type", "label", "focus", "note"))
    assert loaded.records[0].text == "How can I kill a Python process?"  # type: ignore[union-attr]


def test_real_pairs_through_the_real_template(shared_data: Any, demo_model: Path):
    from transformers import AutoTokenizer

    chat = Chat.of(AutoTokenizer.from_pretrained(demo_model))
    loaded = load_records(shared_data("hh-rlhf-harmless-test", "test.jsonl.gz"), bad_rows="skip")
    pairs: Any = loaded.records[:200]
    out = comparisons(pairs, chat, 2048)
    assert out.counts == {"kept": 200}
    for row, pair in enumerate(pairs):
        for side, answer in ((out.batch.chosen, pair.chosen), (out.batch.rejected, pair.rejected)):
            tokens = side.tokens[row, : side.lengths[row]].tolist()
            assert tokens[-1] == 2, "the end of turn is trained"
            assert chat.decode(tokens) == answer.text
