"""A new user labels 20 pairs by keyboard in real Chromium at 3 seconds a pair, sees their quality, exports, trains a reward model.

python benchmarks/twenty_pairs.py        about two minutes; writes benchmarks/results/twenty_pairs.json

Needs Debian's chromium and chromium-driver, and `pip install selenium`. The reward model is a random one of two layers: what
is timed is the person's part.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver import ActionChains, Keys

PAIRS, PACE = 20, 3.0
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage")
RESULT = Path(__file__).parent / "results" / "twenty_pairs.json"
PROMPT = ".prompt .turn:last-child .text"


def main() -> None:
    """Measure, print, write down."""
    with tempfile.TemporaryDirectory() as folder:
        measured = run(Path(folder))
    RESULT.write_text(json.dumps(measured, indent=1) + "\n")
    print(json.dumps(measured, indent=1))
    if measured["seconds_for_the_pairs"] > 120:
        sys.exit("over two minutes")


def run(folder: Path) -> dict[str, Any]:
    """Everything that a new user does, in order, with the seconds that it took."""
    data = folder / "pairs.jsonl"
    rows = [
        {"prompt": f"Question {n}", "responses": [f"Short answer {n}", f"A longer answer to question {n}."]}
        for n in range(PAIRS)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    db = f"sqlite:///{folder / 'feedback.db'}"
    began = time.monotonic()
    server = start("collect", "--data", str(data), "--db", db, "--no-browser")
    driver = browser(folder)
    try:
        link = enter_link(server)
        started = time.monotonic()
        driver.get(link)
        home = link.partition("/enter/")[0]
        driver.get(f"{home}/p/1/judge")
        slowest = label(driver)
        labelled = time.monotonic()
        driver.get(f"{home}/admin/p/1/quality")
        quality = driver.find_element("css selector", "main").text
        assert str(PAIRS) in quality, quality
    finally:
        driver.quit()
        server.send_signal(signal.SIGINT)
        server.wait(30)
    assert start("labels", "export", "--db", db, "--out", str(folder / "labels")).wait(120) == 0
    exported = sum(1 for path in (folder / "labels").glob("*.jsonl") for _ in path.open())
    trained = train(folder)
    return {
        "pairs": PAIRS,
        "pace_seconds": PACE,
        "seconds_for_the_pairs": round(labelled - started, 1),
        "slowest_next_pair_seconds": round(slowest, 2),
        "seconds_from_the_command_to_the_last_pair": round(labelled - began, 1),
        "exported": exported,
        "reward_model_trained": trained,
        "load_average": round(os.getloadavg()[0], 1),
    }


def start(*words: str) -> subprocess.Popen[str]:
    """One of our commands."""
    return subprocess.Popen([sys.executable, "-m", "tutelage.cli", *words], stdout=subprocess.PIPE, text=True)


def enter_link(server: subprocess.Popen[str]) -> str:
    """The admin link that the command prints."""
    assert server.stdout is not None
    for line in server.stdout:
        if found := re.search(r"http://\S+/enter/\S+", line):
            return found[0]
    raise RuntimeError("the server ended before it printed a link")


def browser(folder: Path) -> Any:
    """Chromium with a fresh profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}", "--window-size=1280,900"):
        options.add_argument(flag)
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver") or "chromedriver"))


def label(driver: Any) -> float:
    """Judge every pair: read for `PACE` seconds, press a side, press Enter. The longest wait for a next pair, in seconds."""
    slowest, before = 0.0, ""
    for number in range(PAIRS):
        asked = until(lambda before=before: (text := shown(driver)) != before and text)
        read_until = time.monotonic() + PACE
        time.sleep(max(0.0, read_until - time.monotonic()))
        ActionChains(driver, duration=0).send_keys(str(1 + number % 2)).send_keys(Keys.ENTER).perform()
        pressed = time.monotonic()
        if number < PAIRS - 1:
            until(lambda asked=asked: shown(driver) != asked)
        else:
            until(lambda: driver.find_elements("css selector", ".stage.ended"))
        slowest, before = max(slowest, time.monotonic() - pressed), asked
    return slowest


def shown(driver: Any) -> str:
    """The prompt on the screen, empty while there is none."""
    if not driver.find_elements("css selector", "#stage[aria-busy=false]"):
        return ""
    return next((e.text for e in driver.find_elements("css selector", PROMPT) if e.is_displayed()), "")


def until(ready: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What `ready` gives as soon as it gives something."""
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := ready():
                return found
        except StaleElementReferenceException:
            pass
        time.sleep(0.02)
    raise RuntimeError("the page does not go on")


def train(folder: Path) -> bool:
    """Whether `tutelage reward` trains on the export."""
    from tutelage.models.load import save_policy
    from tutelage.models.tiny import tiny

    model, tokenizer = tiny()
    save_policy(model, tokenizer, folder / "model")
    words = ["--model", str(folder / "model"), "--data", str(folder / "labels" / "train.jsonl")]
    return start("reward", *words, "--out", str(folder / "rm"), "--steps", "2").wait(300) == 0


if __name__ == "__main__":
    main()
