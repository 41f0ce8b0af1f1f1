"""What is saved comes back bit for bit; damage, a full disk and a wrong folder are told clearly and lose nothing."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tutelage.training import checkpoint
from tutelage.training.checkpoint import Checkpoints


def _save(checkpoints: Checkpoints, step: int) -> Path:
    return checkpoints.save(step, {"policy": {"w": torch.full((4,), float(step))}}, {"step": step})


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    base = torch.randn(6, generator=torch.Generator().manual_seed(0))
    groups = {
        "policy": {"a.weight": base, "tied": base, "turned": base.view(2, 3).T, "scalar": torch.tensor(0.1)},
        "value": {"half": base.to(torch.bfloat16), "ids": torch.tensor([2**62, -1]), "none": torch.zeros(0)},
    }
    info = {"rng": 2**80, "mean": 0.1 + 0.2, "nested": {"a": [1, None, "ü"]}}
    Checkpoints(tmp_path).save(120, groups, info)
    saved = Checkpoints(tmp_path).latest()
    assert saved is not None
    assert (saved.step, saved.path.name, saved.info) == (120, "step-000120", info)
    assert _names(saved.path) == ["info.json", "policy.safetensors", "value.safetensors"]
    for group, tensors in groups.items():
        for name, tensor in tensors.items():
            loaded = saved.tensors(group)[name]
            assert loaded.dtype == tensor.dtype
            assert torch.equal(loaded, tensor)
    with pytest.raises(ValueError, match=r"no tensor group 'critic'; it holds policy, value"):
        saved.tensors("critic")


def test_number_keys_do_not_look_like_damage(tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(1, {"p": {"w": torch.zeros(1)}}, {"counts": {2: "b", 10: "a"}})
    saved = Checkpoints(tmp_path).latest()
    assert saved is not None
    assert saved.info == {"counts": {"2": "b", "10": "a"}}  # JSON's keys are strings


def test_the_newest_are_kept_and_nothing_else(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "deep" / "checkpoints", keep=2)
    assert checkpoints.latest() is None
    assert not (tmp_path / "deep").exists()
    for step in (1, 2, 1_000_000, 999_999):  # a later step than the one saved is of a future that was given up
        _save(checkpoints, step)
    assert _names(checkpoints.folder) == ["step-000002", "step-999999"]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: _flip(p / "policy.safetensors"), "policy.safetensors was changed"),
        (lambda p: os.truncate(p / "policy.safetensors", 10), "has 10 bytes instead of"),
        (lambda p: (p / "policy.safetensors").unlink(), "No such file"),
        (lambda p: (p / "info.json").write_text("{"), "info.json is not readable"),
        (lambda p: (p / "info.json").write_text("[]"), "info.json is not readable"),
        (
            lambda p: (p / "info.json").write_text((p / "info.json").read_text().replace('"step": 2', '"step": 3')),
            "changed",
        ),
    ],
    ids=["one bit", "cut", "lost", "half a JSON", "other JSON", "edited"],
)
def test_a_damaged_checkpoint_is_told_and_passed_over(damage, said: str, tmp_path: Path, capsys) -> None:
    checkpoints = Checkpoints(tmp_path)
    _save(checkpoints, 1)
    damage(_save(checkpoints, 2))
    saved = checkpoints.latest()
    assert saved is not None
    assert saved.step == 1
    told = capsys.readouterr().err
    assert said in told
    assert "step-000002" in told
    _save(checkpoints, 2)  # going on reaches the same step again and replaces what was damaged
    assert checkpoints.latest().step == 2  # type: ignore[union-attr]
    assert _names(tmp_path) == ["step-000001", "step-000002"]


def test_all_damaged_is_an_error_that_lists_them(tmp_path: Path) -> None:
    for step in (1, 2):
        _flip(_save(Checkpoints(tmp_path), step) / "policy.safetensors")
    with pytest.raises(ValueError, match=r"(?s)no checkpoint .* is intact.*step-000002.*step-000001"):
        Checkpoints(tmp_path).latest()


@pytest.mark.parametrize("place", ["save_file", "sync_file", "sync_folder"])
def test_a_full_disk_leaves_the_previous_checkpoint(place: str, tmp_path: Path, monkeypatch) -> None:
    _save(Checkpoints(tmp_path), 1)
    real = getattr(checkpoint, place)

    def full(*args) -> None:
        if place == "save_file":
            real(*args)  # something was written before the disk was full
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, place, full)
    with pytest.raises(OSError, match=r"cannot write .*step-000002: no space left") as e:
        _save(Checkpoints(tmp_path), 2)
    assert e.value.errno == errno.ENOSPC
    assert "\n" not in str(e.value)
    assert "free some space" in str(e.value)
    assert _names(tmp_path) == ["step-000001"]
    assert Checkpoints(tmp_path).latest().step == 1  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_systems_own_write_error_is_recognised(tmp_path: Path) -> None:
    """safetensors words it in its own way: a real limit on file sizes, not a patched function."""
    script = f"""
import resource, torch
from pathlib import Path
from tutelage.training.checkpoint import Checkpoints
c = Checkpoints(Path({str(tmp_path)!r}))
c.save(1, {{"p": {{"w": torch.zeros(10)}}}}, {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    c.save(2, {{"p": {{"w": torch.zeros(10000)}}}}, {{}})
except OSError as error:
    print(error.errno, error, c.latest().step)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, env=_environment()
    )
    assert done.stdout.startswith(f"{errno.EFBIG} cannot write "), done
    assert "ulimit -f" in done.stdout
    assert done.stdout.endswith(" 1\n")
    assert _names(tmp_path) == ["step-000001"]


def test_a_file_in_the_way_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*a file stands where a folder should be"):
        _save(Checkpoints(tmp_path / "checkpoints"), 1)


def test_info_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Checkpoints(tmp_path / "c").save(1, {"p": {"w": torch.zeros(1)}}, {"state": object()})
    assert not (tmp_path / "c").exists()


def _environment() -> dict[str, str]:
    source = str(Path(checkpoint.__file__).parents[2])
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    _save(checkpoints, 5)
    rename = os.rename

    def dies(source, target) -> None:
        if ".saving" in str(source):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        _save(checkpoints, 5)
    monkeypatch.undo()
    assert _names(tmp_path) == [".replaced-step-000005"]
    assert checkpoints.latest().step == 5  # type: ignore[union-attr]
    _save(checkpoints, 6)
    assert _names(tmp_path) == ["step-000006"]
