"""A trained model is saved whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest
from toys import SETTINGS, encoder, small_disk, toy

from maw.benchmark import tuning
from maw.benchmark.tuning import Tuned, save_model
from maw.benchmark.variants import VARIANTS
from maw.errors import MAWError


def save(folder):
    tuned = Tuned(encoder(), VARIANTS["dense-full"], None, SETTINGS, {}, {})
    save_model(tuned, folder, base="tiny", dataset=toy(), metrics={"test": {"nDCG@10": 0.5}})


@pytest.mark.parametrize("size", [100_000, 3_000_000], ids=["tokenizers", "safetensors"])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, size):
    folder = tmp_path / "model"
    with small_disk(size), pytest.raises(MAWError, match=r"model could not be written: File too large.*free some"):
        save(folder)
    assert os.listdir(tmp_path) == []
    save(folder)
    assert os.listdir(tmp_path) == ["model"]
    assert "nDCG@10" in (folder / "README.md").read_text()


def test_a_disk_that_is_full_at_the_card_leaves_the_model_of_before(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "before").write_text("")
    monkeypatch.setattr(tuning, "write_model_card", fail)
    with pytest.raises(MAWError, match="model could not be written: No space left on device"):
        save(folder)
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(folder) == ["before"]


def test_the_folders_above_are_made_and_the_model_is_sealed(tmp_path):
    folder = tmp_path / "models" / "dense-full-seed0"
    save(folder)
    assert (folder / "checksums.json").is_file()
