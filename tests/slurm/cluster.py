"""A real Slurm for tests: munged, slurmctld and some slurmd on this machine, all of whose state lies in one folder.

    python tests/slurm/cluster.py up DIR      boots it in about a second and prints what to export
    python tests/slurm/cluster.py down DIR

Where the rights suffice each node is a network, host name and process namespace of its own, so that it can lose its power;
elsewhere all nodes are this host, told apart by their ports. Their CPUs, memory and GPUs are fictional.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PACKAGES = "slurmctld slurmd slurm-client munge"
SEARCH = os.environ["PATH"] + ":/usr/sbin:/sbin"  # daemons stand outside the PATH of most users

# cred_expire is also what a requeued job waits before it may start again: 120 s by default, and for any value below 5. A host
# that stands still for longer between the two halves of a launch fails the step ("Job credential expired"): 5 s was too short.
CONF = """ClusterName=test
SlurmctldHost={host}({controller})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
FirstJobId={first_job}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=15
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.slurm.pid
SlurmdPidFile={root}/%n.slurm.pid
PlugStackConfig=/dev/null
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
SlurmdTimeout=15
SlurmctldTimeout=15
MessageTimeout=60
KillWait=8
MinJobAge=86400
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=1-00:00:00 DefaultTime=10 PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=1-00:00:00 DefaultTime=10 PriorityTier=10 PreemptMode=OFF
"""
# The first process of a node's namespaces: it waits for its network and becomes slurmd.
NODE_INIT = """
root=$1 name=$2 address=$3
hostname "$name"; mount -t proc proc /proc; mount --bind "$root/hosts" /etc/hosts
[ ! -e /etc/resolv.conf ] || mount --bind "$root/resolv.conf" /etc/resolv.conf
ip link set lo up
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip addr add "$address/24" dev eth0; ip link set eth0 up
exec slurmd -D -N "$name" -f "$root/slurm.conf"
"""


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]


def may_make_namespaces() -> bool:
    """Whether nodes can have namespaces of their own here: asked by making one, with a network device in it."""
    if shutil.which("ip", path=SEARCH) is None or shutil.which("unshare") is None:
        return False
    words = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "ip", "link", "add", "pa0", "type", "veth", "peer", "name", "pb0"]  # fmt: skip
    return subprocess.run(words, check=False, capture_output=True, env=os.environ | {"PATH": SEARCH}).returncode == 0


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> object:
    """Poll until `condition()` is true and return it. Raises TimeoutError with `what`."""
    end = time.monotonic() + seconds
    while True:
        if found := condition():
            return found
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.1)


class Cluster:
    """Nodes node1 ... nodeN. `root` must be short (the socket of munge lies in it) and without spaces."""

    def __init__(self, root: Path, nodes: int = 2, cpus: int = 8, gpus: int = 2) -> None:
        self.root, self.nodes, self.cpus, self.gpus = root, [f"node{i + 1}" for i in range(nodes)], cpus, gpus
        self.env = os.environ | {"PATH": SEARCH, "SLURM_CONF": str(root / "slurm.conf")}
        self.isolated = may_make_namespaces()
        tag = zlib.crc32(str(root).encode()) % 0xFFFFF
        self.bridge, self.subnet = f"sl{tag:05x}", f"10.{100 + tag % 100}.{tag // 100 % 250}"

    def __enter__(self) -> "Cluster":
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # boot and end

    def up(self) -> None:
        for name in ("state", "spool", "log", "dev"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o755)
        self._write_configuration()
        key = self.root / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        files = {"key-file": key, "socket": self.root / "munge.socket", "pid-file": self.root / "munged.pid"}
        files |= {"log-file": self.root / "log/munged.log", "seed-file": self.root / "munge.seed"}
        self._call("munged", "--force", *(f"--{flag}={path}" for flag, path in files.items()))
        if self.isolated:
            self._call("ip", "link", "add", self.bridge, "type", "bridge")
            self._call("ip", "addr", "add", f"{self.subnet}.254/24", "dev", self.bridge)
            self._call("ip", "link", "set", self.bridge, "up")
        self._daemon("slurmctld", ["slurmctld", "-D", "-f", str(self.root / "slurm.conf")])
        for name in self.nodes:
            self.power_on(name)
        wait_for(
            lambda: all(self.state(name).startswith("IDLE") for name in self.nodes),
            30,
            f"nodes idle, see {self.root}/log",
        )

    def down(self) -> None:
        subprocess.run(
            ["scancel", "--user", str(os.getuid())], check=False, env=self.env, capture_output=True, timeout=20
        )
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: not self._call("squeue", "-h"), 15, "empty queue")
        for name in self.nodes:
            self.power_off(name)
        for name in ("slurmctld", "munged"):
            self._kill(name, signal.SIGTERM)
        if self.isolated:
            self._call("ip", "link", "del", self.bridge)

    def _write_configuration(self) -> None:
        with socket.socket() as probe:  # slurmctld; nodes that share this host take the ports after it
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1] % 10000 + 20000
        host, lines, known = socket.gethostname().split(".")[0], [], ["127.0.0.1 localhost"]
        controller = f"{self.subnet}.254" if self.isolated else "127.0.0.1"
        for i, name in enumerate(self.nodes, 1):
            address = f"{self.subnet}.{i}" if self.isolated else "127.0.0.1"
            hostname = name if self.isolated else host
            lines.append(
                f"NodeName={name} NodeHostname={hostname} NodeAddr={address} Port={port + i} CPUs={self.cpus} RealMemory=64000 Gres=gpu:{self.gpus}"
            )
            known.append(f"{address} {name}")
            for gpu in range(self.gpus):
                (self.root / "dev" / f"gpu{gpu}").touch()
        text = CONF.format(
            host=host, controller=controller, port=port, user=self._call("id", "-un").strip(), root=self.root,
            first_job=int(time.time()) % 900000 + 1000, nodes="\n".join(lines),
        )  # fmt: skip
        (self.root / "slurm.conf").write_text(text)
        (self.root / "hosts").write_text("\n".join([*known, f"{controller} {host}"]) + "\n")
        (self.root / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # refuses at once what /etc/hosts lacks
        (self.root / "gres.conf").write_text(
            f"AutoDetect=off\nName=gpu File={self.root}/dev/gpu[0-{self.gpus - 1}] Flags=nvidia_gpu_env\n"
        )
        version = self._call("slurmd", "-V").split()[1].split(".")
        if int(version[0]) >= 23:
            (self.root / "cgroup.conf").write_text("CgroupPlugin=disabled\n")

    # nodes

    def power_on(self, name: str) -> None:
        """Starts the node's slurmd."""
        (self.root / "spool" / name).mkdir(exist_ok=True)
        if not self.isolated:
            self._daemon(name, ["slurmd", "-D", "-N", name, "-f", str(self.root / "slurm.conf")])
            return
        number = self.nodes.index(name) + 1
        space = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        init = ["bash", "-c", NODE_INIT, "node", str(self.root), name, f"{self.subnet}.{number}"]
        pid = self._daemon(name, [*space, *init])
        own = os.readlink("/proc/self/ns/net")
        wait_for(lambda: os.readlink(f"/proc/{pid}/ns/net") != own, 5, f"network of {name}")
        outside = f"{self.bridge}v{number}"
        self._call("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self._call("ip", "link", "set", outside, "master", self.bridge, "up")

    def power_off(self, name: str) -> None:
        """SIGKILL to everything that runs on the node, slurmd first."""
        self._kill(name, signal.SIGKILL)
        if not self.isolated:
            for pid in self._processes_of(name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _processes_of(self, name: str) -> list[int]:
        """Tasks of a node that shares this host, and the slurmstepd above each."""
        found = set()
        wanted = (f"SLURM_CONF={self.root}/slurm.conf".encode(), f"SLURMD_NODENAME={name}".encode())
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, IndexError):
                if set(wanted) <= set((entry / "environ").read_bytes().split(b"\0")):
                    found.add(int(entry.name))
                    parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                    if "slurmstepd" in Path(f"/proc/{parent}/comm").read_text():
                        found.add(int(parent))
        return sorted(found)

    def state(self, name: str) -> str:
        return self.show("node", name).get("State", "UNKNOWN")

    # jobs

    def show(self, kind: str, name: object) -> dict[str, str]:
        """`scontrol show KIND NAME` as a dict; empty when there is none."""
        words = self._call("scontrol", "-o", "show", kind, str(name), may_fail=True).split()
        return dict(word.split("=", 1) for word in reversed(words) if "=" in word)

    def wait(self, job: object, seconds: float = 450) -> dict[str, str]:
        """The job as it ended."""
        running = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "UNKNOWN")

        def ended() -> dict[str, str] | None:
            facts = self.show("job", job)
            return facts if facts.get("JobState", "UNKNOWN") not in running else None

        try:
            return wait_for(ended, seconds, f"end of job {job}")  # type: ignore[return-value]
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {self.show('job', job)}") from None

    # processes

    def _call(self, *words: str, may_fail: bool = False) -> str:
        done = subprocess.run(words, check=False, env=self.env, capture_output=True, text=True, timeout=30)
        if done.returncode and not may_fail:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def _daemon(self, name: str, words: list[str]) -> int:
        with open(self.root / "log" / f"{name}.log", "a") as log:
            process = subprocess.Popen(
                words, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        (self.root / f"{name}.pid").write_text(str(process.pid))
        return process.pid

    def _kill(self, name: str, number: int) -> None:
        """Ends a daemon that this cluster started: a process whose command line names our folder."""
        file = self.root / f"{name}.pid"
        if not file.is_file():
            return
        pid = int(file.read_text())
        file.unlink()

        def alive() -> bool:
            with contextlib.suppress(OSError):
                return str(self.root).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
            return False

        if alive():
            os.kill(pid, number)
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: not alive(), 10, f"end of {name}")
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("up", "down"):
        sys.exit(__doc__)
    if missing_programs():
        sys.exit(f"not installed: {', '.join(missing_programs())} (apt-get install {PACKAGES})")
    cluster = Cluster(Path(sys.argv[2]).resolve())
    if sys.argv[1] == "up":
        cluster.up()
        print(f"export SLURM_CONF={cluster.root}/slurm.conf PATH=$PATH:/usr/sbin")
    else:
        cluster.down()
