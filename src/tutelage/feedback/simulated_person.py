"""A simulated annotator at the annotation server: joins by an invite link and judges over HTTP exactly as a browser does."""

from __future__ import annotations

import re
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tutelage.feedback.http import Http
from tutelage.feedback.simulated import SimulatedAnnotator, Utility
from tutelage.records import Answer, Message, Prompt

_CSRF = re.compile(r'name="csrf" content="([^"]+)"')


class SimulatedPerson:
    """`annotator` with its faults (noise, lapses, side and length bias, drift) in a session of its own.

    What it sees is what the server shows: texts in the shown order, no author, no score. Raises ValueError where the link
    does not let it in.
    """

    def __init__(self, link: str, annotator: SimulatedAnnotator, utility: Utility, rng: np.random.Generator) -> None:
        self.annotator, self.utility, self.rng = annotator, utility, rng
        self.judged = 0
        self._http = Http(link)
        joined = self._http.send("POST", urlsplit(link).path, form={"name": annotator.name})
        found = _CSRF.search(self._http.send("GET", "/").text)
        if joined.status != 200 or found is None:
            raise ValueError(f"the invitation of {annotator.name} does not work ({joined.status})")
        self._csrf = found[1]

    def judge_next(self, project: int) -> bool:
        """Judge one item; False where there is none now."""
        reply = self._http.send("GET", f"/api/task/next?project={project}")
        task = reply.json()
        if reply.status != 200:
            raise ValueError(f"project {project}: {task.get('error', reply.status)}")
        if task["assignment"] is None:
            return False
        body = {
            "key": f"simulated-{self.annotator.name}-{task['assignment']}-{time.time_ns()}",
            "payload": self.payload(task["item"]),
            "instructions_version": task["instructions_version"],
        }
        done = self._http.send("POST", f"/api/task/{task['assignment']}/submit", body, x_csrf_token=self._csrf)
        if done.status != 200:
            raise ValueError(f"a judgment of {self.annotator.name} was refused ({done.status}): {done.text[:200]}")
        self.judged += 1
        return True

    def payload(self, item: dict[str, Any]) -> dict[str, Any]:
        """The judgment of a pair or a ranking, in shown positions. Raises ValueError for another kind of task."""
        prompt = Prompt(tuple(Message(turn["role"], turn["content"]) for turn in item["prompt"]))
        texts = [one["text"] for one in item["responses"]]
        utilities = [float(self.utility(prompt, Answer(text))) for text in texts]
        lengths = [len(text.split()) for text in texts]
        if item["kind"] == "preference":
            pair, sizes = (utilities[0], utilities[1]), (lengths[0], lengths[1])
            said = self.annotator.judge_pair(pair, sizes, 0, self.rng, self.judged)
            return {"choice": {1.0: "first", 0.0: "second", 0.5: "tie"}[said]}
        if item["kind"] == "ranking":
            order = self.annotator.rank(utilities, lengths, range(len(texts)), self.rng, self.judged)
            return {"ranks": [order.index(place) + 1 for place in range(len(texts))]}
        raise ValueError(f"a simulated annotator compares and ranks; got a task of {item['kind']}")
