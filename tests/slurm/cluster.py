"""A real Slurm on one machine: several nodes, each with a host name and processes of its own. Needs root.

    with SlurmCluster(folder, nodes=3) as cluster:
        subprocess.run(["sbatch", …], env={**os.environ, **cluster.environment})

All lives in `folder` and on 127.0.0.1. A node is a set of Linux namespaces: ending its first process ends all that runs
on it, as a power cut does.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")
CONTROL_PORT, NODE_PORT = 27017, 27100
CPUS = 4  # of a node; more than there are, as the tests' jobs mostly wait
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,batch_sched_delay=0,sched_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=3
MinJobAge=300
SlurmdTimeout=5
MessageTimeout=5
TCPTimeout=1
UnkillableStepTimeout=120
NodeName=n[1-{nodes}] NodeAddr=127.0.0.1 Port=[{first_port}-{last_port}] CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""


def missing() -> str:
    """Return why no cluster can be started here; "" if one can."""
    absent = [program for program in PROGRAMS if _find(program) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt-get install slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "starting a Slurm cluster needs root"


class SlurmCluster:
    """A running cluster, as a context; `environment` makes Slurm's programs talk to it."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self._nodes = folder, nodes
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> SlurmCluster:
        self.folder.mkdir(parents=True)
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        host = socket.gethostname().partition(".")[0]
        (self.folder / "slurm.conf").write_text(CONF.format(
            host=host, folder=self.folder, control_port=CONTROL_PORT, nodes=self._nodes, cpus=CPUS,
            first_port=NODE_PORT + 1, last_port=NODE_PORT + self._nodes,
        ))
        names = [host, *(f"n{number}" for number in range(1, self._nodes + 1))]
        (self.folder / "hosts").write_text("".join(f"127.0.0.1 {name}\n" for name in ("localhost", *names)))
        (self.folder / "munge.key").write_bytes(os.urandom(128))
        (self.folder / "munge.key").chmod(0o600)
        try:
            self._start_daemons()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        for name in list(self._daemons):
            self._end(name, signal.SIGKILL if name.startswith("n") else signal.SIGTERM)

    def run(self, *command: str) -> str:
        """Run one of Slurm's programs; return what it prints."""
        return subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True,
                              check=True, timeout=30).stdout

    def kill_node(self, name: str) -> None:
        """Cut a node's power."""
        self._end(name, signal.SIGKILL)

    def stop_controller(self) -> None:
        """Let Slurm answer no question; what runs goes on."""
        self._end("slurmctld", signal.SIGTERM)

    def start_controller(self) -> None:
        """Let Slurm answer again."""
        self._spawn("slurmctld", [str(_find("slurmctld")), "-D"])
        wait_until(lambda: self._works("scontrol", "ping"))

    def start_node(self, name: str) -> None:
        """Start a node: its own host name, process ids and /etc/hosts."""
        hosts = f"mount --bind {self.folder}/hosts /etc/hosts"
        inside = f"{hosts} && hostname {name} && {_find('slurmd')} -D -N {name} & wait"
        self._spawn(name, ["unshare", "--fork", "--pid", "--kill-child", "--mount-proc", "--uts", "sh", "-c", inside])

    def idle(self) -> bool:
        """Whether all nodes wait for work."""
        states = self.run("sinfo", "--noheader", "--Node", "--partition", "low", "--format", "%t").split()
        return states == ["idle"] * self._nodes

    def _start_daemons(self) -> None:
        folder = self.folder
        self._spawn("munged", [
            str(_find("munged")), "-F", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key",
            f"--log-file={folder}/munged.log", f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munge.seed",
        ])
        wait_until(lambda: self._works("munge", "-n", "-S", f"{folder}/munge.socket"))
        self.start_controller()
        for number in range(1, self._nodes + 1):
            self.start_node(f"n{number}")
        wait_until(self.idle)

    def _works(self, *command: str) -> bool:
        try:
            self.run(*command)
        except subprocess.SubprocessError:
            return False
        return True

    def _spawn(self, name: str, command: list[str]) -> None:
        with open(self.folder / f"{name}.out", "ab") as log:
            self._daemons[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                                   env={**os.environ, **self.environment}, start_new_session=True)

    def _end(self, name: str, number: int) -> None:
        daemon = self._daemons.pop(name)
        daemon.send_signal(number)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something that happens elsewhere.

    Raises:
        AssertionError: it did not.
    """
    patience = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < patience, f"it did not happen within {seconds} seconds"
        time.sleep(0.2)


def _find(program: str) -> str | None:
    """Look in root's folders, too, which are not on everyone's path."""
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
