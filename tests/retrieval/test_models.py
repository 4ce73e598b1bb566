"""Which device a process works on."""

from __future__ import annotations

import pytest
import torch

from maw.errors import MAWError
from maw.retrieval.models import LOCAL_PLACES, choose_own_device


@pytest.fixture(autouse=True)
def four_gpus(monkeypatch):
    """A machine with four GPUs, as far as a process can ask, and no launcher."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for name in (*LOCAL_PLACES, "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("place", LOCAL_PLACES)
def test_every_process_of_a_machine_gets_a_gpu_of_its_own(monkeypatch, place):
    assert choose_own_device() == torch.device("cuda")
    monkeypatch.setenv("PMI_SIZE", "8")
    monkeypatch.setenv(place, "3")
    assert choose_own_device() == choose_own_device("cuda") == torch.device("cuda:3")
    assert choose_own_device("cuda:1") == torch.device("cuda:1")
    assert choose_own_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("own", ["4", "-1", "first", ""])
def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch, own):
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", own)
    with pytest.raises(MAWError, match=f"OMPI_COMM_WORLD_LOCAL_RANK={own} of this machine, but its GPUs are 0 to 3"):
        choose_own_device()
    assert choose_own_device("cpu") == torch.device("cpu")


def test_processes_that_do_not_know_their_place_do_not_share_a_gpu(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "8")
    with pytest.raises(MAWError, match=r"of PMI_SIZE=8 processes none says which of its machine it is"):
        choose_own_device()
    assert choose_own_device("cuda:2") == torch.device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_own_device() == torch.device("cuda")
