"""Reading in parts: each row once, whole prompts together, in the rows' order, with a bar."""

import pytest
import torch

from tutelage import console
from tutelage.data.batch import sequences
from tutelage.stages.parts import in_parts, some_at_a_time, whole_prompts


def test_whole_prompts_by_hand():
    """Five rows of three prompts, two at a time: prompt 0 has three rows and stays whole, 1 and 2 go together."""
    parts = [part.tolist() for part in whole_prompts(torch.tensor([0, 1, 0, 2, 0]), most=2)]
    assert parts == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize("most", [1, 3, 64])
def test_every_row_once_and_no_prompt_in_two_parts(most):
    prompt_of = torch.randint(7, (40,), generator=torch.Generator().manual_seed(0))
    parts = list(whole_prompts(prompt_of, most))
    assert sorted(torch.cat(parts).tolist()) == list(range(40))
    seen = [set(prompt_of[part].tolist()) for part in parts]
    assert sum(map(len, seen)) == len(set(prompt_of.tolist()))


def test_what_was_read_stands_in_the_rows_order(monkeypatch):
    monkeypatch.setattr("tutelage.stages.parts.AT_ONCE", 2)
    rows = sequences([[1], [2], [3]], [0, 1, 0, 2, 0], [[5], [6], [7, 8], [9], [10]])
    calls = []

    def read(part):
        calls.append(len(part))
        assert not torch.is_grad_enabled()
        return part.tokens[:, 0].float()

    assert in_parts(rows, read, "reading").tolist() == [5, 6, 7, 9, 10]
    assert calls == [3, 2]


def test_slices_cover_and_the_bar_ends_full(monkeypatch, capsys):
    monkeypatch.setattr(console, "QUIET_SECONDS", 0)
    assert [list(range(5))[part] for part in some_at_a_time(range(5), "judging", most=2)] == [[0, 1], [2, 3], [4]]
    assert "judging: 5/5 prompts" in capsys.readouterr().err
