"""Silence while weights are read and written: what the libraries print then tells a reader nothing. A download keeps its bar."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging

DEPRECATED = r"`is_gradient_checkpointing` is deprecated"
"""peft reads this property of transformers whenever it wraps a model."""


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block transformers draws no bar ("Loading weights", "Writing model shards"), and peft's `DEPRECATED` is not warned of.

    Everything else is said as before, and afterwards all is as it was.
    """
    bars, downloads = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    if bars:
        logging.disable_progress_bar()  # the hub's too, which is put right at once
    if bars and downloads:
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=DEPRECATED, category=FutureWarning)
            yield
    finally:
        if bars:
            logging.enable_progress_bar()
