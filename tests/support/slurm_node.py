"""A Slurm of one node on this machine: its own controller, node daemon and keys, on free ports."""

from __future__ import annotations

import getpass
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
WHY_NOT = next(
    (f"{name} is not installed (apt-get install slurm-wlm)" for name in NEEDED if not shutil.which(name)), ""
)
if not WHY_NOT and os.getuid() != 0:
    WHY_NOT = "a node daemon of Slurm needs root"
_PAUSE = 6.0
"""seconds before a job that was queued again starts: a node refuses one that it has just ended"""
_ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}


@dataclass(frozen=True)
class SlurmNode:
    """A running Slurm.

    Attributes:
        folder: of its files.
        environment: in which its commands find it.
    """

    folder: Path
    environment: dict[str, str]

    def command(self, *words: str, cwd: Path | None = None) -> str:
        """Run one of Slurm's commands; what it prints."""
        done = subprocess.run(words, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def submit(self, *words: str, cwd: Path) -> int:
        """``sbatch``; the number of the job."""
        return int(self.command("sbatch", "--parsable", *words, cwd=cwd).split(";")[0])

    def states(self, job: int) -> dict[str, str]:
        """The state of a job, or of each task of an array that has begun, by its number."""
        shown = self.command("scontrol", "show", "job", str(job), "--oneliner")
        found = {}
        for line in shown.splitlines():
            values = dict(re.findall(r"(\w+)=(\S+)", line))
            found[values.get("ArrayTaskId", "")] = values["JobState"]
        return found

    def wait(self, job: int, seconds: float = 300) -> dict[str, str]:
        """The states of a job when all of it has ended; a job queued again starts soon."""
        until = time.monotonic() + seconds
        while not _ENDED.issuperset((states := self.states(job)).values()):
            assert time.monotonic() < until, f"job {job} has not ended: {states}"
            if "PENDING" in states.values():
                time.sleep(_PAUSE)
                now = ["scontrol", "update", f"JobId={job}", "StartTime=now"]
                subprocess.run(now, env=self.environment, capture_output=True, timeout=60)
            time.sleep(0.5)
        return states


@contextmanager
def slurm_node(folder: Path, cores: int = 4) -> Iterator[SlurmNode]:
    """Start a Slurm whose files are in ``folder``, with a node that claims ``cores`` cores."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    key, munge = folder / "munge.key", folder / "munge.socket"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "MUNGE_SOCKET": str(munge)}
    (folder / "slurm.conf").write_text(_configuration(folder, munge, cores))
    with ExitStack() as stack:
        places = [f"--{name}={folder / f'munge.{name}'}" for name in ("log-file", "pid-file", "seed-file")]
        stack.enter_context(_daemon(folder, ["munged", "-F", "-f", f"--key-file={key}", f"--socket={munge}", *places]))
        _until(munge.exists, "munged")
        for words in (["slurmctld", "-D"], ["slurmd", "-D", "-N", _host()]):
            stack.enter_context(_daemon(folder, words, environment))
        node = SlurmNode(folder, environment)
        _until(lambda: "idle" in _shown(node), "the node")
        yield node


def _shown(node: SlurmNode) -> str:
    words = ["sinfo", "--noheader", "--format=%T"]
    return subprocess.run(words, env=node.environment, capture_output=True, text=True, timeout=30).stdout


@contextmanager
def _daemon(folder: Path, words: list[str], environment: dict[str, str] | None = None) -> Iterator[None]:
    with open(folder / f"{words[0]}.out", "wb") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(holds: Callable[[], bool], what: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"{what} did not start"
        time.sleep(0.2)


def _host() -> str:
    return platform.node().split(".")[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _configuration(folder: Path, munge: Path, cores: int) -> str:
    spool, state = folder / "spool", folder / "state"
    spool.mkdir(exist_ok=True)
    state.mkdir(exist_ok=True)
    shape = f"CPUs={cores} Boards=1 SocketsPerBoard=1 CoresPerSocket={cores} ThreadsPerCore=1"
    return f"""
ClusterName=tests
SlurmctldHost={_host()}(127.0.0.1)
SlurmUser={getpass.getuser()}
SlurmdUser={getpass.getuser()}
SlurmctldPort={_free_port()}
SlurmdPort={_free_port()}
AuthType=auth/munge
AuthInfo=socket={munge}
CredType=cred/munge
StateSaveLocation={state}
SlurmdSpoolDir={spool}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
MinJobAge=3600
KillWait=30
JobRequeue=1
NodeName={_host()} NodeAddr=127.0.0.1 {shape} RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
