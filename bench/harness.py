"""What the comparisons share: programs that are built, started, and measured from outside."""

import contextlib
import json
import os
import platform
import re
import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Unmeasured(Exception):
    """A server or the client did not do what it had to."""


def built(folder, name):
    """A release build of a program of this tree."""
    subprocess.run(["cargo", "build", "--release", "--locked", "--bin", name], cwd=folder, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    return (target if target.is_absolute() else folder / target) / "release" / name


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def prefer(pid):
    """Puts what is measured before everything else on the machine, where we may: both ways, as `nice` alone does
    nothing between sessions that the kernel groups, and the other nothing where it groups none."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, -15)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text("-15")


def cpu_seconds(pid):
    """What a process has used, user and kernel, all its threads."""
    # The name, in parentheses, may contain anything; what is counted comes after it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def resident_bytes(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def machine_cpu_seconds():
    """What all processes have used: user, nice, system and, as in theirs, interrupts."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split()[1:8]]
    return (sum(fields[:3]) + sum(fields[5:])) / TICKS_PER_SECOND


def run_load(name, command, seconds_max):
    """The result of the load generator, which was told to write it to its standard output, and what it said besides.
    A target that was missed is a result, too."""
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    prefer(client.pid)
    try:
        out, err = client.communicate(timeout=seconds_max)
    except subprocess.TimeoutExpired:
        client.kill()
        raise Unmeasured(f"{name} hung: {' '.join(command)}") from None
    said = err.decode(errors="replace")
    if not out.strip():
        raise Unmeasured(f"{name}: {' '.join(command)}: {said}")
    return json.loads(out), said


def info(client, name):
    """A number that INFO tells on this connection."""
    client.sendall(b"INFO\r\n")
    said = b""
    while b"\r\n" not in said or len(said) < int(said[1:said.index(b"\r\n")]):
        more = client.recv(1 << 16)
        if not more:
            raise Unmeasured("the node hung up on INFO")
        said += more
    found = re.search(rf"^{name}:(\d+)", said.decode(), re.MULTILINE)
    if not found:
        raise Unmeasured(f"INFO has no {name}")
    return int(found[1])


def said_by(*command):
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    return "unknown"


def machine(directory):
    """One line on where this runs."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return (f"tree: {said_by('git', 'describe', '--always', '--dirty')}\n"
            f"Linux {platform.release()}, {os.cpu_count()} CPUs ({cpu.group(1) if cpu else 'unknown'}), data on "
            f"{said_by('findmnt', '-n', '-o', 'FSTYPE', '-T', str(directory))}, load average "
            f"{os.getloadavg()[0]:.1f} at start")
