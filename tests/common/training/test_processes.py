import os
import subprocess
import sys

import pytest
import torch

from components.common.errors import UserError
from components.common.training import processes
from components.params import Params
from tests.common.training import ranks
from tests.conftest import MakeShards


def run_ranks(*checks: str, **environment: str) -> None:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "tests.common.training.ranks"]
    done = subprocess.run([*start, *checks], env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


def test_collectives_of_two_processes(make_shards: MakeShards, tiny: Params) -> None:
    checks = [name for name in vars(ranks) if name.startswith("check_")]
    run_ranks(*checks, SHARDS=make_shards(), PARAMS=tiny.model_dump_json(by_alias=True))


def test_collectives_of_one_process_change_nothing() -> None:
    rows, order = torch.randn(4, 2), torch.tensor([2, 0, 3, 1])
    assert torch.equal(processes.permute(rows, order), rows[order])
    assert processes.gather(rows) is rows
    assert processes.any_rank(True, False) == [True, False]
    assert list(processes.in_lockstep(iter([1, 2]))) == [1, 2]
    with pytest.raises(UserError, match="mine"), processes.shared_errors():
        raise UserError("mine")
    assert (processes.rank(), processes.world_size(), processes.is_main()) == (0, 1, True)


def test_more_processes_than_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"has GPUs \(2\); set --nproc-per-node to 2"), processes.process_group("auto"):
        pass
