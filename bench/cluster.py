"""Clusters of real nodes, each in a network of its own where that may be had, and what can be done to them.

As root each node has a network namespace with an address of its own, on a bridge in another one, in which this process
and the load generator live. The namespaces have no names: the kernel takes one away when the last process in it
has ended, so nothing is left behind, whatever becomes of us. What a link does is decided by the hardware address that one
side has on record for the other: the right one; one that nobody has, and all that is sent is silently gone, in this
direction alone; or that of a relay, which hands on what comes, late and with losses. So it needs neither a packet filter nor
traffic control of the kernel.

Without root all nodes are on the loopback interface, and links cannot be broken.
"""

import contextlib
import ctypes
import fcntl
import os
import random
import re
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections import deque
from pathlib import Path

import harness
from harness import Unmeasured

START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 30
POLL_SECONDS = 0.02
# A node that takes longer to tell how it sees the others tells nothing.
POLL_PATIENCE = 0.5
KEY = "of a cluster under test"

_libc = ctypes.CDLL(None, use_errno=True)
_NEW_NETWORK = 0x40000000
_DIE_WITH_PARENT = 1


def _check(result, what):
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _own_namespace():
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _enter(namespace):
    _check(_libc.setns(namespace, _NEW_NETWORK), "setns")


def die_with_parent():
    """Of a child: what we started does not outlive us."""
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)


class Network:
    """A namespace for each of `count` nodes, and a bridge between them. The thread that makes it lives there, too."""

    NOWHERE = "02:51:00:00:0f:ff"
    RELAY = "02:51:00:00:01:00"

    def __init__(self, count):
        self.count = count
        self.home = _own_namespace()
        self.nodes = {}
        self.relay = None
        _check(_libc.unshare(_NEW_NETWORK), "unshare")
        self.hub = _own_namespace()
        self.ip(self.hub, f"link add hub address {self.mac(254)} type bridge", "link set lo up",
                f"addr add {self.host(254)}/24 dev hub", "link set hub up")
        for node in range(1, count + 1):
            _check(_libc.unshare(_NEW_NETWORK), "unshare")
            self.nodes[node] = _own_namespace()
            _enter(self.hub)
            at = f"/proc/{os.getpid()}/fd/{self.nodes[node]}"
            self.ip(self.hub, f"link add v{node} type veth peer name eth0 address {self.mac(node)} netns {at}",
                    f"link set v{node} master hub up")
            self.ip(self.nodes[node], "link set lo up", f"addr add {self.host(node)}/24 dev eth0", "link set eth0 up")
        for node in self.nodes:
            self.mend(node, [other for other in (*self.nodes, 254) if other != node])

    def host(self, node):
        return f"10.77.0.{node}"

    def mac(self, node):
        return f"02:51:00:00:00:{node:02x}"

    def ip(self, namespace, *commands):
        """Has the `ip` of the machine do this in a namespace."""
        _enter(namespace)
        try:
            done = subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, capture_output=True)
        finally:
            _enter(self.hub)
        if done.returncode != 0:
            raise Unmeasured(f"ip {'; '.join(commands)}: {done.stderr.strip()}")

    def _send(self, node, others, mac):
        self.ip(self.nodes[node], *(f"neigh replace {self.host(other)} lladdr {mac or self.mac(other)} dev eth0 nud permanent"
                                    for other in others))

    def mend(self, node, others):
        """What `node` sends to the others arrives."""
        self._send(node, others, None)

    def cut(self, node, others):
        """What `node` sends to the others is gone."""
        self._send(node, others, self.NOWHERE)

    def slow(self, node, others, seconds, loss):
        """What `node` sends to the others arrives later, but for a part of it."""
        if self.relay is None:
            self.relay = Relay(self)
        self.relay.seconds, self.relay.loss = seconds, loss
        self._send(node, others, self.RELAY)

    def within(self, node):
        """What a child process has to do to be there."""
        namespace = self.nodes[node]
        return lambda: _enter(namespace)

    def bytes_of_client(self):
        """What this process and the load generator sent and received."""
        return device_bytes("/proc/thread-self/net/dev", "hub")

    def close(self):
        if self.relay:
            self.relay.close()
        _enter(self.home)
        for namespace in (self.home, self.hub, *self.nodes.values()):
            os.close(namespace)


def device_bytes(path, device):
    """Bytes received and sent."""
    for line in Path(path).read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == device:
            fields = numbers.split()
            return int(fields[0]), int(fields[8])
    raise Unmeasured(f"{path} has no {device}")


class Relay:
    """Hands on what comes, so much later, but for a part of it."""

    def __init__(self, network):
        self.network = network
        self.seconds, self.loss = 0.0, 0.0
        self.chance = random.Random(1)
        self.is_closing = False
        self.device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        tap, no_information, set_interface = 0x0002, 0x1000, 0x400454CA
        fcntl.ioctl(self.device, set_interface, struct.pack("16sH", b"relay", tap | no_information))
        # Its own address stays another one: what is for that of a port the bridge keeps to itself.
        network.ip(network.hub, "link set relay master hub up")
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        waiting = deque()
        own = bytes.fromhex(self.network.RELAY.replace(":", ""))
        while not self.is_closing:
            patience = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 0.1
            if select.select([self.device], [], [], min(patience, 0.1))[0]:
                with contextlib.suppress(BlockingIOError):
                    frame = os.read(self.device, 1 << 16)
                    # To us, of IPv4: the last byte of the address tells for whom it is.
                    if frame[:6] == own and frame[12:14] == b"\x08\x00" and self.chance.random() >= self.loss:
                        to = bytes.fromhex(self.network.mac(frame[33]).replace(":", ""))
                        waiting.append((time.monotonic() + self.seconds, to + own + frame[12:]))
            while waiting and waiting[0][0] <= time.monotonic():
                with contextlib.suppress(OSError):  # a full queue loses it
                    os.write(self.device, waiting.popleft()[1])

    def close(self):
        self.is_closing = True
        self.thread.join()
        os.close(self.device)


def free_row(count):
    """The first of so many ports that are free at this moment."""
    while True:
        first = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as held:
            for port in range(first, first + count):
                held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


class Refused(Exception):
    """An error that a node answered."""


class Client:
    """A connection to a node."""

    def __init__(self, address, patience):
        self.socket = socket.create_connection(address, timeout=patience)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.input = self.socket.makefile("rb")

    def ask(self, *words):
        reply, = self.ask_all([words])
        if isinstance(reply, Refused):
            raise reply
        return reply

    def ask_all(self, commands):
        """The replies to all of these, errors among them."""
        out = bytearray()
        for words in commands:
            out += b"*%d\r\n" % len(words)
            for word in words:
                word = word if isinstance(word, bytes) else str(word).encode()
                out += b"$%d\r\n%s\r\n" % (len(word), word)
        self.socket.sendall(out)
        return [self.read() for _ in commands]

    def read(self):
        line = self.input.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the node hung up")
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            return Refused(rest.decode(errors="replace"))
        if kind == b"+":
            return rest.decode()
        if kind == b":":
            return int(rest)
        if kind not in b"$*%" or kind == b"":
            raise ConnectionError(f"no reply: {line!r}")
        count = int(rest)
        if count < 0:
            return None
        if kind == b"$":
            return self.input.read(count + 2)[:-2]
        return [self.read() for _ in range(2 * count if kind == b"%" else count)]

    def close(self):
        self.input.close()
        self.socket.close()


class Node:
    """A node, which may be down."""

    def __init__(self, number, options, where, network, join, has_own_clock=False):
        self.number = number
        self.network = network
        self.dir = where / f"node-{number}"
        self.dir.mkdir()
        if network:
            host, port, cores, peers, http = network.host(number), 6379, 16379, 7379, 8379
        else:
            host, port, http = "127.0.0.1", harness.free_port(), harness.free_port()
            cores, peers = free_row(options.cores), free_row(options.cores)
        self.address, self.peer = (host, port), f"{host}:{peers}"
        gossip, suspect, dead = options.gossip
        self.config = self.dir / "config.toml"
        self.config.write_text(
            f'dir = "{self.dir / "data"}"\nbind = "{host}"\nport = {port}\ncore-port = {cores}\nhttp-port = {http}\npeer-port = {peers}\n'
            f'cores = {options.cores}\nmemory = "512MiB"\ncluster-key = "{KEY}"\njoin = [{join}]\n'
            f'durability = "{options.durability}"\n'
            f"gossip-interval-ms = {gossip}\nsuspect-after-ms = {suspect}\ndead-after-ms = {dead}\n{options.more}\n")
        self.log = self.dir / "log"
        self.clock = self.dir / "clock" if has_own_clock else None
        if has_own_clock:
            self.set_clock(0)
        self.process = None
        self.is_stopped = False

    def start(self):
        """Starts it, and waits until it serves."""
        into = self.network.within(self.number) if self.network else lambda: None

        def prepare():
            die_with_parent()
            into()

        before = self.ready_lines()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([str(self.program), "--config", str(self.config)], stdout=log, stderr=log, env=self.environment(),
                                            stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=prepare)
        harness.prefer(self.process.pid)
        deadline = time.monotonic() + START_SECONDS_MAX
        while self.ready_lines() == before:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Unmeasured(f"node {self.number} does not start; it said:\n{self.said()}")
            time.sleep(0.01)

    program = None
    # libfaketime for programs with threads, if it is there: it makes one process' time of day another one.
    clock_library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)

    def set_clock(self, seconds):
        """From the next second on its time of day is so far off."""
        next_clock = self.dir / "clock.next"
        next_clock.write_text(f"{seconds:+d}s\n")
        next_clock.rename(self.dir / "clock")

    def environment(self):
        if not self.clock:
            return None
        return os.environ | {"LD_PRELOAD": str(self.clock_library), "FAKETIME_TIMESTAMP_FILE": str(self.clock),
                             "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}

    def ready_lines(self):
        return self.log.read_bytes().count(b"ready redis=") if self.log.exists() else 0

    def said(self, lines=15):
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def is_up(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.is_stopped = False

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)
        self.is_stopped = True

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)
        self.is_stopped = False

    def stop(self):
        """Stops it in order."""
        self.process.terminate()
        try:
            self.process.wait(timeout=STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise Unmeasured(f"node {self.number} does not stop; it said:\n{self.said()}") from None

    def move(self):
        """From the next start on HTTP is at another port, of which the cluster's map has to tell."""
        self.config.write_text(re.sub(r"(?m)^http-port = .*$", "http-port = 0", self.config.read_text()))

    def client(self, patience=5.0):
        return Client(self.address, patience)

    def network_bytes(self):
        """Received and sent."""
        return device_bytes(f"/proc/{self.process.pid}/net/dev", "eth0" if self.network else "lo")


class Cluster:
    """Nodes that have found each other; empty."""

    def __init__(self, options, where, network, count, has_own_clocks=False):
        Node.program = options.quoit
        self.nodes = {}
        try:
            for number in range(1, count + 1):
                join = f'"{self.nodes[1].peer}"' if self.nodes else ""
                self.nodes[number] = Node(number, options, where, network, join, has_own_clocks)
                self.nodes[number].start()
            self.watch = Watch(self)
            keepers = " ".join(map(str, range(1, {1: 1, 2: 1, 3: 3, 4: 3}.get(count, 5) + 1)))
            whole = {"cluster_nodes": str(count), "cluster_map_kept_by": keepers}
            if not self.watch.wait(lambda: self.watch.is_whole() and self.watch.all_tell(whole), 30):
                raise Unmeasured(f"no cluster of {count} nodes forms; node 1 said:\n{self.nodes[1].said()}")
        except BaseException:
            self.close()
            raise

    watch = None

    def addresses(self):
        return [f"{host}:{port}" for host, port in (node.address for node in self.nodes.values())]

    def cpu_seconds(self):
        return sum(harness.cpu_seconds(node.process.pid) for node in self.nodes.values())

    def complaints(self):
        """What no node must say."""
        said = []
        for node in self.nodes.values():
            lines = node.log.read_text(errors="replace").splitlines() if node.log.exists() else []
            said += [f"node {node.number}: {line}" for line in lines if "panicked" in line or " ERROR " in line]
        return said

    def differing(self, keys):
        """How many of these keys the nodes that are up do not tell the same of, each asked at ONE."""
        commands = [("KV.GET", key, "CONSISTENCY", "one") for key in keys]
        told = []
        for node in self.nodes.values():
            if node.is_up() and not node.is_stopped:
                with contextlib.closing(node.client()) as client:
                    told.append([str(reply) for reply in client.ask_all(commands)])
        return sum(len(set(of_key)) > 1 for of_key in zip(*told))

    def close(self):
        if self.watch:
            self.watch.close()
        for node in self.nodes.values():
            if node.is_up():
                node.kill()


class Watch:
    """How each node sees the others, asked for again and again."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.is_closing = False
        # By observer: what it tells of itself, and the standing of each node in its eyes. None: it tells nothing.
        self.told = {number: None for number in cluster.nodes}
        self.threads = [threading.Thread(target=self.follow, args=(node,), daemon=True) for node in cluster.nodes.values()]
        for thread in self.threads:
            thread.start()

    def follow(self, node):
        client = None
        while not self.is_closing:
            try:
                client = client or node.client(POLL_PATIENCE)
                lines = client.ask("INFO", "cluster").decode().split("\r\n")
                self.told[node.number] = dict(line.split(":", 1) for line in lines if ":" in line)
            except (OSError, Refused, ValueError):
                self.told[node.number] = None
                if client:
                    client.close()
                client = None
            time.sleep(POLL_SECONDS)

    def standing(self, observer, subject):
        told = self.told[observer]
        if told is None:
            return "unknown"
        fields = dict(part.split("=", 1) for part in told.get(f"node{subject}", "").split(",") if "=" in part)
        return fields.get("standing", "unknown")

    def all_tell(self, wanted):
        return all(told is not None and wanted.items() <= told.items() for told in self.told.values())

    def is_whole(self):
        """True if all see all."""
        return all(self.standing(a, b) in ("alive", "self") for a in self.told for b in self.told)

    def misses(self, pairs):
        """True if each of these observers knows that its subject is not there."""
        return all(self.standing(a, b) not in ("alive", "unknown") for a, b in pairs)

    def wait(self, is_so, seconds):
        """True if it is so before the time is over."""
        deadline = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def close(self):
        self.is_closing = True
        for thread in self.threads:
            thread.join()


class Witness:
    """What the machine does to everybody: the longest time that a small file beside the nodes' took to be synced."""

    def __init__(self, directory):
        self.file = os.open(directory / "witness", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        self.longest = 0.0
        self.is_closing = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.is_closing:
            began = time.monotonic()
            os.pwrite(self.file, b"w" * 4096, 0)
            os.fdatasync(self.file)
            self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(0.05)

    def close(self):
        self.is_closing = True
        self.thread.join()
        os.close(self.file)
