"""Sweeps through launchers: processes here, and a real Slurm that the test starts itself."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gooddrag.data import write_sample
from tests import tiny
from tests.ports import free_ports

pytest.importorskip(
    "hydra_plugins.hydra_submitit_launcher", reason="needs pip install 'gooddrag[slurm]'"
)
PROGRAM = Path(sys.executable).with_name("gooddrag")
SBIN = os.environ["PATH"] + os.pathsep + "/usr/sbin"  # where Debian has Slurm's daemons
MUNGE = ("key-file", "socket", "pid-file", "log-file", "seed-file")
SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName={host} CPUs={cpus} State=UNKNOWN
PartitionName=here Nodes=ALL Default=YES State=UP
"""


@pytest.fixture
def data(tmp_path) -> Path:
    for i in range(2):
        write_sample(tiny.make_sample(i), tmp_path / "data" / f"cat_{i}")
    return tmp_path / "data"


def sweep(folder: Path, data: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    given = ["data=folder", f"data.root={data}", "trainer=cpu", "output=out", "report=false"]
    return subprocess.run(
        [PROGRAM, "bench", "-m", *given, *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": SBIN} | variables,
        capture_output=True,
        text=True,
        timeout=400,
    )


def runs(folder: Path) -> dict[tuple[str, int], int]:
    """How many samples of each run (method, seed) are done."""
    found = {}
    for path in (folder / "out").glob("*/run.json"):
        about = json.loads(path.read_text())
        records = [json.loads(p.read_text()) for p in path.parent.rglob("record.json")]
        done = sum(record["status"] == "done" for record in records)
        found[about["method"], about["seed"]] = done
    return found


def test_processes_here(tmp_path, data):
    words = ["hydra/launcher=local", "method=identity,paste", "seed=0"]
    done = sweep(tmp_path, data, *words)
    assert done.returncode == 0, done.stderr
    assert runs(tmp_path) == {("identity", 0): 2, ("paste", 0): 2}


def test_what_fails_there_is_told_here(tmp_path, data):
    done = sweep(tmp_path, data, "hydra/launcher=local", "method=identity", "batch=0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: batch must be at least 1, found 0"


@pytest.fixture
def slurm(tmp_path) -> Iterator[Path]:
    """Start a Slurm of one node; gives its configuration's file."""
    daemons = ("munged", "slurmctld", "slurmd")
    absent = [name for name in daemons if shutil.which(name, path=SBIN) is None]
    if absent:
        pytest.skip(f"no {', '.join(absent)} here: Debian has them as slurm-wlm and munge")
    if os.geteuid() != 0:
        pytest.skip("Slurm's daemons are started as root only")
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    for place in (tmp_path, *tmp_path.parents):  # munge wants a socket that all may reach
        if place.owner() == "root" and Path(tempfile.gettempdir()) in place.parents:
            place.chmod(place.stat().st_mode | 0o055)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(
        SLURM_CONF.format(host=host, ports=free_ports(2), folder=folder, cpus=os.cpu_count() or 1)
    )
    munge = [f"--{kind}={folder}/munge.{kind.partition('-')[0]}" for kind in MUNGE]
    env = os.environ | {"PATH": SBIN, "SLURM_CONF": str(conf)}
    commands = (["munged", "-F", "-f", *munge], ["slurmctld", "-D"], ["slurmd", "-D", "-N", host])
    started = []
    try:
        for command in commands:
            quiet = subprocess.DEVNULL
            started.append(subprocess.Popen(command, env=env, stdout=quiet, stderr=quiet))
            time.sleep(1)
        until = time.monotonic() + 30
        while "idle" not in (state := said(env, "sinfo", "-h", "-o", "%t")):
            if time.monotonic() > until:
                break
            time.sleep(0.5)
        if "idle" not in state:
            log = folder / "slurmctld.log"
            told = log.read_text()[-500:] if log.exists() else "no log"
            pytest.skip(f"Slurm does not come up on this machine: {state}, {told}")
        yield conf
        until = time.monotonic() + 60
        while said(env, "squeue", "-h") and time.monotonic() < until:
            time.sleep(0.5)  # a job's result is there before the job has ended
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=30)


def said(env: dict[str, str], *command: str) -> str:
    """What a command of Slurm's says."""
    found = subprocess.run(command, env=env, capture_output=True, text=True)
    return (found.stdout + found.stderr).strip()


def test_a_real_slurm(tmp_path, data, slurm):
    words = ["hydra/launcher=slurm", "method=identity,paste", "seed=0,1"]
    words += [f"hydra.launcher.{name}=null" for name in ("gpus_per_node", "mem_gb")]
    done = sweep(tmp_path, data, *words, "hydra.launcher.cpus_per_task=1", SLURM_CONF=str(slurm))
    assert done.returncode == 0, done.stderr
    assert runs(tmp_path) == {(m, s): 2 for m in ("identity", "paste") for s in (0, 1)}
    assert list((tmp_path / "outputs" / "slurm").glob("*_0"))  # the array's scripts and logs
