"""Reports from run folders: whatever is there is drawn, numbers are the file's, texts are escaped, nothing is fetched."""

import json
import math
import re
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tutelage.evaluation import figures, page
from tutelage.evaluation.captions import METRICS
from tutelage.evaluation.figures import Line
from tutelage.evaluation.page import Page, number, percent, within
from tutelage.evaluation.report import metric_curves, quickstart_report, read_rows, training_report

EVIL = '<script>alert("x")</script><img src=https://evil.example/a.png onerror=alert(1)>'


def between(estimate: float, half: float = 0.05, n: int = 240) -> dict:
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half, "n": n, "clusters": n}


def quickstart(**changes) -> dict:
    """A finished quickstart.json: the policy rises to 73.4 % by the gold rule and 78.9 % by the reward model."""
    curve = [
        {
            "step": 5 * i, "win_gold": 0.5 + 0.234 * (1 - math.exp(-i / 2)), "win_gold_low": 0.45 + 0.23 * (1 - math.exp(-i / 2)),
            "win_gold_high": 0.55 + 0.23 * (1 - math.exp(-i / 2)), "win_reward": 0.5 + 0.3 * (1 - math.exp(-i / 2)), "kl": 0.7 * i,
            "length": 44 - 2.5 * i, "finished": 0.41 + 0.085 * i, "reward": 0.1 + 0.3 * i, "gold": 0.31 + 0.04 * i,
        }
        for i in range(7)
    ]  # fmt: skip
    data = {
        "seed": 0, "algorithm": "grpo", "quick": False, "status": "finished", "model": "builtin:smollm2-135m-instruct",
        "minutes": {"answers": 2.1, "feedback": 0.1, "reward_model": 6.4, "policy": 15.2, "evaluation": 4.3},
        "tokens": {"answers": 36000, "reward_model": 190000, "policy": 410000, "evaluation": 70000},
        "machine": "2 cores, 150 GFLOP/s",
        "prompts": {
            "train": 240, "heldout": 240, "examples": ["Write a haiku about rust.", "Why is the sky blue?"],
            "categories": {"generation": 219, "open_qa": 60, "brainstorming": 54, "chat": 40, "rewrite": 32, "extract": 9},
        },
        "answers": {
            "count": 960, "mean_tokens": 41.2, "finished": 0.413,
            "examples": [{"prompt": "Why is the sky blue?", "answers": ["Because air scatters blue light.", "The sky is"]}],
        },
        "feedback": {
            "kind": "simulated", "comparisons": 1440, "agreement": between(0.777), "alpha": 0.402, "ceiling": 0.871,
            "annotators": [
                {"name": name, "temperature": t, "lapse": lapse, "side_bias": bias, "agreement_with_gold": between(agrees, 0.02)}
                for name, t, lapse, bias, agrees in (("careful", 0.05, 0.02, 0.0, 0.913), ("hasty", 0.15, 0.1, 0.0, 0.801),
                                                     ("leaning", 0.1, 0.05, 0.6, 0.842))
            ],
        },
        "reward_model": {
            "accuracy": between(0.768, 0.03), "gold_accuracy": between(0.812, 0.03), "ceiling": 0.866, "longer_wins": 0.424,
            "shorter_wins": 0.576,
            "reliability": [{"predicted": p, "observed": p + 0.03, "low": p - 0.05, "high": p + 0.09, "n": 60}
                            for p in (0.12, 0.3, 0.47, 0.63, 0.86)],
        },
        "curve": curve,
        "evaluation": {
            "win_gold": between(0.734), "ties": 0.02, "win_reward": between(0.789), "matched_length": between(0.701, 0.06),
            "kl": {"estimate": 4.21, "low": 3.9, "high": 4.5}, "before": {"reward": 0.11, "gold": 0.312, "length": 44.0, "finished": 0.41},
            "after": {"reward": 1.93, "gold": 0.553, "length": 28.5, "finished": 0.923},
        },
        "samples": [
            {"prompt": f"Request {i}: how do I keep basil alive?", "before": "Basil is a plant that " * 6, "after": "Water it.",
             "gold_before": 0.21, "gold_after": 0.64, "reward_before": -0.4, "reward_after": 1.7}
            for i in range(10)
        ],
        "next": ["tutelage chat runs/quickstart/rl", "tutelage chat runs/quickstart/rl --compare builtin:smollm2-135m-instruct"],
    }  # fmt: skip
    return data | changes


def real() -> dict:
    """The same run on people's own comparisons; the gold numbers are left in to see that none is drawn."""
    feedback = {"kind": "real", "comparisons": 812, "annotators": [], "agreement": None, "ceiling": None}
    return quickstart(feedback=feedback, answers=None)


def plain(text: str) -> str:
    """With ordinary spaces before the percent signs."""
    return text.replace("\u00a0", " ")


def read(path: Path) -> str:
    return plain(path.read_text(encoding="utf-8"))


def draw(folder: Path, data: dict) -> str:
    (folder / "quickstart.json").write_text(json.dumps(data), encoding="utf-8")
    return read(quickstart_report(folder))


def training_run(folder: Path, steps: int, tail: str = "") -> Path:
    rows = [
        {
            "step": step, "loss": 0.7 - 0.01 * step, "reward/mean": None if step == 3 else 0.1 * step, "policy/kl": 0.02 * step,
            "answer/finished": 0.5 + 0.01 * step, "time/draw": 4.0, "time/sample": 3.0, "time/update": 2.5,
        }
        for step in range(1, steps + 1)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
    return folder


def assert_self_contained(html: str) -> None:
    """No script, no style sheet, no address in any attribute; ids are unique and every reference meets one."""
    assert not re.search(r"<(script|iframe|object|embed|img|base)\b", html)
    assert re.search(r"default-src 'none'", html)
    for tag in re.findall(r"<[a-zA-Z][^<>]*>", html):
        assert "http:" not in tag.replace("http-equiv", ""), tag
        assert not re.search("https:|@import", tag), tag
        assert not re.search(r"\son\w+\s*=", tag), tag
        for target in re.findall(r'(?:href|src)="([^"]*)"', tag) + re.findall(r"url\(([^)]*)\)", tag):
            assert target.startswith("#") or target == "data:,", tag
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)


def numbers_table(html: str, title: str) -> str:
    """The figure of that title, its folded table included."""
    return html[html.index(f"<h3>{title}</h3>") :].split("</figure>")[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """The page of the finished run."""
    return draw(tmp_path_factory.mktemp("whole"), quickstart())


def test_quickstart_page_tells_all_stages_with_the_numbers_of_the_file(whole):
    html = whole
    assert_self_contained(html)
    for stage in range(1, 8):
        assert re.search(rf"<h2>{stage}\. ", html)
    assert "The labellers are simulated." in html
    assert "73 % [68 %, 78 %]" in numbers_table(html, "Win rate at the end")
    assert "79 % [74 %, 84 %]" in numbers_table(html, "Win rate at the end")
    assert "70 % [64 %, 76 %]" in numbers_table(html, "Win rate at the end")
    right = numbers_table(html, "How often it is right")
    assert "77 % [74 %, 80 %]" in right
    assert "42 %" in right
    assert "58 %" in right
    assert "best possible 87 %" in right, "the ceiling stands in the picture"
    assert "careful agrees with the hidden rule: 91 % [89 %, 93 %]" in numbers_table(
        html, "How far the labels can be trusted"
    )
    assert "Result by the hidden rule: better than before." in html
    assert "28.1 min" in html, "2.1 + 0.1 + 6.4 + 15.2 + 4.3"
    assert "706,000" in html, "36 + 190 + 410 + 70 thousand tokens"
    assert html.count('<article class="card">') == 11, "ten samples and one prompt with first answers"
    assert "tutelage chat runs/quickstart" in html


def test_checkpoints_are_drawn_against_the_square_root_of_kl_with_their_steps(whole):
    figure = numbers_table(whole, "Win rate against the distance from the start")
    assert f"{math.sqrt(0.7 * 6):.3g} (step 30)" in figure, "the last of seven checkpoints: KL 4.2, so 2.05"
    assert re.search(r"<text[^>]*>30</text>", figure), "and the step is written at its point"


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [
        (between(0.56, 0.05), "better than before"),
        (between(0.54, 0.05), "not told apart"),
        (between(0.4, 0.05), "worse than"),
    ],
)
def test_verdict_follows_the_interval_not_the_estimate(tmp_path, rate, verdict):
    assert f"Result by the hidden rule: {verdict}" in draw(tmp_path, {"evaluation": {"win_gold": rate}})


def test_reward_hacking_is_named_when_the_two_scores_part(tmp_path):
    evaluation = quickstart()["evaluation"]
    assert "Reward hacking." not in draw(tmp_path, {"evaluation": evaluation})
    hacked = evaluation | {"after": evaluation["after"] | {"gold": 0.2}}
    assert "Reward hacking." in draw(tmp_path, {"evaluation": hacked})


def test_quick_run_shows_no_win_rate(tmp_path, whole):
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.2, "eval/win_rate": 0.9}\n')
    html = draw(tmp_path, quickstart(quick=True))
    assert "A quick run." in html
    assert "claims nothing" in html
    assert not re.search(r"win[ _-]?rate|Result by", html, re.IGNORECASE)
    assert not re.search(r"73 % \[68|79 % \[74|70 % \[64", html)
    assert re.search("win rate", whole, re.IGNORECASE), "and a full run does"


def test_real_feedback_shows_no_gold_number(tmp_path):
    (tmp_path / "rl").mkdir()
    (tmp_path / "rl" / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.2, "reward/gold": 0.9}\n')
    html = draw(tmp_path, real())
    assert_self_contained(html)
    assert not re.search("gold|hidden rule|simulated", html, re.IGNORECASE)
    assert not re.search(r"73 % \[68|0\.64\b", html), "the numbers are not there under another name either"
    assert "812 comparisons were read" in html
    assert "79 % [74 %, 84 %]" in html, "the reward model's win rate"
    assert "77 % [74 %, 80 %]" in html, "held-out label accuracy"
    assert "tutelage chat runs/quickstart/rl --compare builtin:smollm2-135m-instruct" in html


def test_rows_that_were_left_out_are_said_where_the_file_is_told_of(tmp_path):
    found = {"source": "mine.jsonl", "rows": 40, "left_out": 3, "such_as": "mine.jsonl: line 7: no `chosen`"}
    html = draw(tmp_path, {**real(), "left_out": {"comparison": found}})
    assert "3 of 40 rows of mine.jsonl could not be read, such as mine.jsonl: line 7: no `chosen`" in html
    assert html.rindex("3. Feedback") < html.index("Rows were left out.") < html.rindex("4. The reward model")
    html = draw(tmp_path, {**quickstart(), "left_out": {"prompt": found}})
    assert html.rindex("1. The requests") < html.index("Rows were left out.") < html.rindex("2. The first answers")
    assert "Rows were left out." not in draw(tmp_path, quickstart())


def test_learning_from_comparisons_directly_has_its_curves_too(tmp_path):
    (tmp_path / "prefer").mkdir()
    (tmp_path / "prefer" / "metrics.jsonl").write_text('{"step": 0, "loss": 0.69}\n{"step": 1, "loss": 0.6}\n')
    html = draw(tmp_path, quickstart(algorithm="dpo"))
    assert "How it learned, step by step" in html
    assert "5. Learning from the comparisons" in html
    assert "How it learned, step by step" not in draw(tmp_path, quickstart(algorithm="grpo"))


STAGES = ("prompts", "answers", "feedback", "reward_model", "curve", "evaluation", "samples", "next", "minutes")


@pytest.mark.parametrize("only", STAGES)
def test_any_stage_may_be_all_there_is(tmp_path, only):
    html = draw(tmp_path, {"status": "running", only: quickstart()[only]})
    assert html.count("Nothing here yet") == {"minutes": 7, "curve": 5}.get(only, 6)
    assert html.rstrip().endswith("</html>")


def test_checkpoints_of_equal_distance_keep_their_own_rows():
    drawing = figures.lines(
        "x", [Line("a", [0.0, 0.0, 1.0], [0.5, 0.6, 0.7])], x="distance", shares=True, steps=[0, 5, 10]
    )
    rows = [tuple(cell.replace("\u00a0", " ") for cell in row) for row in drawing.rows]
    assert rows == [("0 (step 0)", "50 %"), ("0 (step 5)", "60 %"), ("1 (step 10)", "70 %")]


def test_page_can_be_drawn_before_anything_is_written_and_from_a_half_written_file(tmp_path):
    assert "still going on" in read(quickstart_report(tmp_path))
    (tmp_path / "quickstart.json").write_text('{"seed": 0, "quick": tr')
    assert "still going on" in read(quickstart_report(tmp_path))


def test_non_finite_numbers_become_dashes(tmp_path):
    html = draw(tmp_path, {"evaluation": {"win_gold": {"estimate": 0.6, "low": math.nan, "high": math.inf, "n": 1}}})
    assert "no interval" in html
    assert "nan" not in re.sub(r"<[^>]*>", "", html).lower()


def test_text_of_models_and_files_is_escaped_everywhere(tmp_path):
    def poison(value):
        if isinstance(value, dict):
            return {key if key.islower() else EVIL: poison(v) for key, v in value.items()}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return EVIL if isinstance(value, str) and value not in ("simulated", "finished") else value

    data = poison(quickstart())
    data["prompts"]["categories"] = {EVIL: 3, "$x_1$ & $\\frac": 2}
    data["minutes"] = {EVIL: 1.0}
    html = draw(tmp_path, data)
    assert_self_contained(html)
    assert html.count("&lt;script&gt;") > 30
    assert "$x 1$ &amp; $\\frac" in html, "dollars are text, not formulas"


def test_half_an_emoji_does_not_stop_the_report(tmp_path):
    (tmp_path / "quickstart.json").write_text(
        '{"seed": 0, "prompts": {"train": 1, "heldout": 1, "examples": ["x \\ud83d y"]}}'
    )
    assert "x ? y" in read(quickstart_report(tmp_path))


def test_training_report_draws_known_and_unknown_metrics(tmp_path):
    folder = training_run(tmp_path, 12)
    (folder / "config.yaml").write_text("command: rl\nmodel: <b>x</b>\n")
    answers = [{"text": f"{EVIL} {i}", "reward": 0.25 * i, "parts": {"polite": 0.5}} for i in range(8)]
    samples = [
        {"step": 4, "prompt": "an old one", "answers": []},
        {
            "step": 12,
            "prompt": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}],
            "answers": answers,
        },
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))
    html = read(training_report(folder))
    assert_self_contained(html)
    assert "Up to step 12" in html
    assert "how far the policy has moved from its start" in html
    assert "0.58" in numbers_table(html, "loss"), "0.7 - 0.01 * 12"
    assert "62 %" in numbers_table(html, "answer/finished"), "a share is shown in percent"
    assert "reward/mean (1)" in html, "the null of step 3 is counted"
    assert "user: hi\nassistant: yes?" in html
    assert "an old one" not in html
    assert "<b>1.75</b>" in html
    assert "polite" in html
    assert "model: &lt;b&gt;x&lt;/b&gt;" in html


@pytest.mark.parametrize("steps", [0, 1])
def test_training_report_of_a_run_that_has_hardly_begun(tmp_path, steps):
    html = read(training_report(training_run(tmp_path, steps)))
    assert_self_contained(html)
    assert ("Nothing has been logged yet" in html) == (steps == 0)
    assert html.count("<figure>") == (0 if steps == 0 else 5), "four metrics and the times"


def test_training_report_of_an_empty_folder(tmp_path):
    assert "No step yet" in read(training_report(tmp_path))


def test_truncated_last_line_is_left_out_and_a_broken_one_is_counted(tmp_path):
    html = read(training_report(training_run(tmp_path, 2, '{"step": 3, "loss": 0.')))
    assert "Up to step 2" in html
    assert "could not be read" not in html
    html = read(training_report(training_run(tmp_path, 2, '{"step": 3, "lo\n[1]\n{"step": 4, "loss": 0.5}')))
    assert "Up to step 4" in html, "a last line that is whole counts, newline or not"
    assert "2 lines of metrics.jsonl and samples.jsonl could not be read" in html


def test_file_cut_inside_a_character_is_read(tmp_path):
    (tmp_path / "samples.jsonl").write_bytes('{"step": 1, "prompt": "a"}\n{"step": 2, "prompt": "é'.encode()[:-1])
    assert read_rows(tmp_path / "samples.jsonl") == ([{"step": 1, "prompt": "a"}], 0)


def test_metric_curves_have_gaps_and_keep_the_last_row_of_a_repeated_step():
    curves, gaps = metric_curves(
        [{"step": 2, "a": 9.0, "note": "x"}, {"step": 1, "a": None, "done": True}, {"step": 2, "a": 5.0}, {"a": 1.0}]
    )
    assert curves == {"a": Line("a", [1, 2], [None, 5.0])}
    assert gaps == {"a": 1}


def test_page_is_replaced_in_one_move(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    Page("old").write(path)
    before = path.stat().st_ino

    def crash(*_):
        assert "old" in path.read_text(), "the old page stands until the new one is whole"
        raise OSError("disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", crash)
        with pytest.raises(OSError, match="disk is gone"):
            Page("new").write(path)
    assert "old" in path.read_text()
    assert path.stat().st_ino == before
    Page("new").write(path)
    assert "new" in path.read_text()
    assert path.stat().st_ino != before
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"], "no unfinished file is left"


def test_drawings_are_well_formed_named_and_reproducible():
    row = {"estimate": 0.72, "low": 0.66, "high": 0.78}
    drawings = [
        lambda: figures.lines(
            "a <b> & c", [Line("x", [1, 2], [0.5, None], [0.4, None], [0.6, None])], shares=True, reference=0.5
        ),
        lambda: figures.intervals("b", [("one", row)]),
        lambda: figures.bars("c", [("one", row)], ceiling=0.9),
        lambda: figures.reliability("d", [{"predicted": 0.3, "n": 4} | row]),
        lambda: figures.histogram("e", [1.0, 2.0, 2.0, math.nan], x="length"),
        lambda: figures.stacked("f", [("one", 3.0), ("two", 1.0)], unit="min"),
    ]
    for draw_one in drawings:
        drawing = draw_one()
        root = ElementTree.fromstring(drawing.svg)
        assert root.get("role") == "img"
        assert root[0].text.startswith(drawing.title)
        assert "var(--" in drawing.svg, "the page's colours"
        assert draw_one() == drawing
    assert [tuple(map(plain, row)) for row in drawings[1]().rows] == [("one", "72 % [66 %, 78 %]")]
    assert drawings[4]().rows == (("1 to 1.5", "1"), ("1.5 to 2", "2"))
    assert [tuple(map(plain, row)) for row in drawings[5]().rows] == [("one", "3", "75 %"), ("two", "1", "25 %")]


def test_whisker_lies_where_its_numbers_say():
    """The interval from 0 % to 100 % reaches from the tick of one to the tick of the other."""
    svg = plain(figures.bars("x", [("one", {"estimate": 0.5, "low": 0.0, "high": 1.0})]).svg)
    ticks = {text: float(x) for x, text in re.findall(r'<text[^>]* x="([\d.]+)"[^>]*>(0 %|100 %)</text>', svg)}
    whisker = re.search(r'd="M ([\d.]+) [\d.]+ +L ([\d.]+) [\d.]+ *"[^>]*var\(--ink', svg)
    assert whisker
    assert float(whisker[1]) == pytest.approx(ticks["0 %"], abs=0.1)
    assert float(whisker[2]) == pytest.approx(ticks["100 %"], abs=0.1)


def test_long_curves_are_averaged_and_their_table_keeps_both_ends():
    drawing = figures.lines("x", [Line("x", list(range(5000)), [float(i) for i in range(5000)])])
    assert len(drawing.svg) < 40_000
    assert len(drawing.rows) == 24
    assert drawing.rows[0] == ("0", "0")
    assert drawing.rows[-1] == ("4,999", "4,999")


@pytest.mark.parametrize(
    ("value", "words", "share"),
    [(0.5, "0.5", "50 %"), (0.994, "0.994", "99.4 %"), (1234.5, "1,234", "123450 %"), (3e-05, "3e-05", "0.0 %"),
     (None, "–", "–"), (math.nan, "–", "–"), (math.inf, "–", "–"), (1, "1", "100 %"), (-2.0, "-2", "-200 %")],
)  # fmt: skip
def test_numbers_in_words(value, words, share):
    assert number(value) == words
    assert plain(percent(value)) == share


def test_interval_without_bounds_is_its_estimate():
    assert plain(within({"estimate": 0.5})) == "50 %"
    assert within({"estimate": 2.5, "low": 2.0, "high": 3.0}, number) == "2.5 [2, 3]"


def test_table_names_its_rows_and_columns_for_screen_readers():
    html = page.table(("step", "loss"), [("1", "0.5")], caption="a & b")
    assert '<th scope="col">loss</th>' in html
    assert '<th scope="row">1</th>' in html
    assert "<caption>a &amp; b</caption>" in html


def test_the_shares_of_the_limit_are_one_figure_with_its_sentence(tmp_path):
    """Whole steps and phases share a figure, drawn as shares; padded passes are drawn where there were any."""
    row = {
        "fraction_of_limit": 0.5,
        "fraction_of_limit/update": 0.625,
        "fraction_of_limit/sample": 0.25,
        "fallback": 0.0,
    }
    rows = [{"step": step, **row, "recomputed": 0.1 * step} for step in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    html = training_report(tmp_path).read_text()
    assert html.count("<figure>") == 2
    assert html.count("The least seconds that each phase could take") == 1
    assert "whole step" in html
    assert "62\xa0%" in html, "as a percentage"
    assert METRICS["recomputed"] in unescape(html)
    assert METRICS["fallback"] not in unescape(html)
