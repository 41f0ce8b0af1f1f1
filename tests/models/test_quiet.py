"""Weights are read, adapted and written without a word on stderr; what a caller has set up stays as it was."""

import warnings

import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from tutelage.models.load import load_policy, save_policy
from tutelage.models.lora import LoRA
from tutelage.models.quiet import quiet
from tutelage.models.tiny import tiny


@pytest.fixture
def bars_on():
    """As in a program of the user's that has changed nothing; put back afterwards."""
    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    yield
    if not before:
        logging.disable_progress_bar()


def test_a_model_is_saved_loaded_and_adapted_in_silence(bars_on, tmp_path, capfd):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        save_policy(*tiny(), tmp_path / "model")
        load_policy(tmp_path / "model", lora=LoRA(rank=2), dtype="float32", device="cpu")
    assert [str(w.message) for w in heard if w.category is FutureWarning] == []
    assert capfd.readouterr() == ("", "")


def test_without_it_the_libraries_do_speak(bars_on, tmp_path, capfd):
    """Fails when they have gone quiet by themselves: then `quiet` can go."""
    save_policy(*tiny(), tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert "Loading weights" in capfd.readouterr().err
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        assert not model.is_gradient_checkpointing


def test_a_download_keeps_its_bar_and_other_warnings_are_heard(bars_on):
    with quiet():
        assert not logging.is_progress_bar_enabled()
        assert not are_progress_bars_disabled()
        with pytest.warns(FutureWarning, match="something else"):
            warnings.warn("something else", FutureWarning, stacklevel=1)
    assert logging.is_progress_bar_enabled()


def test_bars_that_were_off_stay_off(bars_on):
    logging.disable_progress_bar()
    with quiet(), quiet():
        pass
    assert not logging.is_progress_bar_enabled()
    assert are_progress_bars_disabled()
    enable_progress_bars()
