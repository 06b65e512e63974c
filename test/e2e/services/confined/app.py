"""Lists, from inside, all that keeps a container's process from the machine: GET / gives it as JSON."""

import errno
import http.server
import json
import os
import pathlib
import resource
import stat
import tempfile

MASKED = [
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/scsi",
    "/proc/sched_debug", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
]
READ_ONLY = [
    "/proc/bus", "/proc/fs", "/proc/irq/default_smp_affinity", "/proc/sys/kernel/hostname", "/proc/sys/vm/drop_caches",
    "/proc/sys/net/ipv4/ip_forward", "/proc/sysrq-trigger", "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/fs/cgroup/new", "/sys/fs/cgroup/memory/new", "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/devices/devices.allow", "/sys/fs/cgroup/cgroup.procs", "/sys/firmware/new", "/proc/acpi/new",
]
WRITABLE = ["/dev/new", "/dev/shm/new", "/tmp/new", "/new"]
DEVICES = {
    "mem": ("c", 1, 1), "null": ("c", 1, 3), "zero": ("c", 1, 5), "full": ("c", 1, 7), "urandom": ("c", 1, 9),
    "kmsg": ("c", 1, 11), "tty": ("c", 5, 0), "console": ("c", 5, 1), "ptmx": ("c", 5, 2), "tun": ("c", 10, 200),
    "fuse": ("c", 10, 229), "kvm": ("c", 10, 232), "loop": ("b", 7, 0), "disk": ("b", 254, 0),
}
LIMITS = [
    "memory/memory.limit_in_bytes", "memory/memory.memsw.limit_in_bytes", "cpu/cpu.cfs_quota_us",
    "cpu/cpu.cfs_period_us", "cpu/cpu.shares", "pids/pids.max", "cpuset/cpuset.cpus", "cpuset/cpuset.mems",
    "devices/devices.list", "memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "pids.max",
]


def said(work) -> str:
    """What came of it: "ok", or the name of the error."""
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok"


def seen(path: str) -> object:
    """What there is of a path that is to be masked."""
    if os.path.isdir(path):
        return os.listdir(path)
    try:
        with open(path, "rb") as file:
            return f"{len(file.read(64))} bytes"
    except OSError as error:
        return errno.errorcode[error.errno]


def write(path: str) -> str:
    """Opens for writing, or makes it where it is not there; nothing is written."""
    there = os.path.lexists(path)
    if os.path.isdir(path):
        path, there = f"{path}/new", False
    result = said(lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT)))
    if result == "ok" and not there:
        os.unlink(path)
    return result


def device(kind: str, major: int, minor: int) -> list[str]:
    """What comes of making a device, and of opening it to read and to write."""
    path = tempfile.mktemp()
    mode = stat.S_IFBLK if kind == "b" else stat.S_IFCHR
    made = said(lambda: os.mknod(path, mode | 0o600, os.makedev(major, minor)))
    if made != "ok":
        return [made]
    opened = [
        said(lambda how=how: os.close(os.open(path, how | os.O_NONBLOCK | os.O_NOCTTY)))
        for how in (os.O_RDONLY, os.O_WRONLY)
    ]
    os.unlink(path)
    return [made, *opened]


def mounts() -> list[list[str]]:
    """Where, what of which kind of file system, and the options of mount and file system; numbers left out."""
    listed = []
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, system = line.partition(" - ")
        _, _, _, root, at, options, *peers = fields.split()
        kind, source, system_options = system.split(" ", 2)
        listed.append([at, root, options, *peers, kind, source, system_options])
    return sorted(listed)


def tree(folder: str) -> list[list[object]]:
    """What is in a folder, with owners and modes; numbers of devices, and where links lead."""
    entries = []
    for name in [".", *sorted(os.listdir(folder))]:
        path = os.path.join(folder, name)
        about = os.lstat(path)
        link = os.readlink(path) if stat.S_ISLNK(about.st_mode) else ""
        entries.append([name, stat.filemode(about.st_mode), about.st_uid, about.st_gid, about.st_rdev, link])
    return entries


def listed() -> dict:
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    names = ["Uid", "Gid", "Groups", "Umask", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
    names += ["NoNewPrivs", "Seccomp", "Seccomp_filters", "NSpid", "CoreDumping", "THP_enabled"]
    limits = [pathlib.Path("/sys/fs/cgroup", file) for file in LIMITS]
    return {
        "status": {name: status.get(name, "").split() for name in names},
        "oom_score_adj": pathlib.Path("/proc/self/oom_score_adj").read_text().strip(),
        "apparmor": seen("/proc/self/attr/current"),
        "masked": {path: seen(path) for path in MASKED},
        "read only": {path: write(path) for path in READ_ONLY},
        "writable": {path: write(path) for path in WRITABLE},
        "devices": {name: device(*numbers) for name, numbers in DEVICES.items()},
        "dev": tree("/dev"),
        "shm": tree("/dev/shm"),
        "cgroup folder": tree("/sys/fs/cgroup"),
        "cgroups": pathlib.Path("/proc/self/cgroup").read_text().splitlines(),
        "limits": {str(file): sorted(file.read_text().splitlines()) for file in limits if file.exists()},
        "mounts": mounts(),
        "rlimits": {
            name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")
        },
        "host name": os.uname().nodename,
        "processes": sorted(name for name in os.listdir("/proc") if name.isdigit()),
        "sysctls": {
            path: pathlib.Path("/proc/sys", path).read_text().split()
            for path in ["net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range", "kernel/shmmax"]
        },
        "real-time scheduling": said(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))),
        "new mount namespace": said(lambda: os.unshare(os.CLONE_NEWNS)),
    }


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"ok" if self.path == "/healthz" else json.dumps(listed()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.HTTPServer(("", 8080), Handler)
print("ready", flush=True)
server.serve_forever()
