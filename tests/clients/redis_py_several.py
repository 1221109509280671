"""What a user of redis-py's cluster client does with three nodes, one of which is at argv[1]:argv[2].

Says `kill` when a node is to be killed, and goes on when it is told a line. An AssertionError is a failure.
"""

import sys
import time

import redis
from redis.backoff import ConstantBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry

HOST, PORT = sys.argv[1], int(sys.argv[2])
PRIMARIES, REPLICAS, ALL = RedisCluster.PRIMARIES, RedisCluster.REPLICAS, RedisCluster.ALL_NODES


def connect(**options):
    retry = Retry(ConstantBackoff(0.1), 30)
    return RedisCluster(
        startup_nodes=[ClusterNode(HOST, PORT)], decode_responses=True, retry=retry, socket_timeout=20, **options
    )


def total(r, name):
    """A number of INFO, summed over the ports of cores."""
    return sum(info[name] for info in r.info(target_nodes=PRIMARIES).values())


def shape(r):
    assert len(r.get_primaries()) == 6, "two cores of each of three nodes"
    assert len(r.get_replicas()) == 3, "and the copies of each node"
    told = r.cluster_nodes()
    masters = {name: node for name, node in told.items() if "master" in node["flags"]}
    copies = {name: node for name, node in told.items() if "slave" in node["flags"]}
    assert (len(masters), len(copies)) == (6, 3), told
    ids = {node["node_id"] for node in masters.values()}
    assert all(node["master_id"] in ids for node in copies.values()), told
    for name in ids:
        replicas = r.cluster_replicas(name, target_nodes=r.get_default_node())
        assert len(replicas) == 2, replicas
        assert all(node["master_id"] == name for node in replicas.values()), replicas
    info = r.cluster_info(target_nodes=r.get_primaries()[0])
    assert info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "9", info


def keys(r):
    for index in range(300):
        assert r.set(f"key:{index}", index) is True
    for index in range(300):
        assert r.get(f"key:{index}") == str(index)
    assert r.delete("key:0", "key:1") == 2 and r.set("key:0", 0) and r.set("key:1", 1)
    assert r.unlink("key:2", "absent") == 1 and r.set("key:2", 2)
    assert r.touch("key:2", "key:3", "absent") == 2
    assert r.exists("key:2", "key:3", "absent") == 2
    assert r.mset({"{m}1": "1", "{m}2": "2"}) is True and r.mget("{m}1", "{m}2") == ["1", "2"]
    with r.pipeline() as pipe:
        for index in range(100):
            pipe.get(f"key:{index}")
        assert pipe.execute() == [str(index) for index in range(100)]


def whole(r):
    wanted = {f"key:{index}" for index in range(300)} | {"{m}1", "{m}2", "first"}
    names = r.keys(target_nodes=PRIMARIES)
    assert sorted(names) == sorted(wanted), "each key once, over the ports of all cores"
    assert r.dbsize(target_nodes=PRIMARIES) == len(wanted)
    found = list(r.scan_iter(match="key:*", count=7))
    assert len(found) == len(set(found)) == 300, len(found)
    slot = r.keyslot("key:1")
    assert r.cluster_countkeysinslot(slot) == 1 and r.cluster_get_keys_in_slot(slot, 5) == ["key:1"]
    plain = redis.Redis(r.get_replicas()[0].host, r.get_replicas()[0].port, decode_responses=True)
    assert sorted(plain.scan_iter(count=13)) == sorted(wanted), "at the shared port of a node"
    assert plain.dbsize() == len(wanted) and plain.randomkey() in wanted


def copies(r):
    """Reads go round owners and copies, none is sent on, and all tell the same."""
    redirected, seen = total(r, "commands_redirected"), total(r, "total_commands_processed")
    for _ in range(3):
        for index in range(300):
            assert r.get(f"key:{index}") == str(index)
    assert total(r, "commands_redirected") == redirected, "a read was sent on"
    # Two of three reads went to copies; the ports of the cores share their counters with those of their nodes.
    assert total(r, "total_commands_processed") - seen >= 900


def core_reads_its_copies(r):
    home = r.get_node_from_key("key:1")
    others = [node for node in r.get_primaries() if node.port != home.port]
    replies = []
    for node in others:
        plain = redis.Redis(node.host, node.port, decode_responses=True)
        connection = plain.connection_pool.get_connection()

        def ask(*words):
            connection.send_command(*words)
            try:
                return connection.read_response()
            except redis.ResponseError as error:
                return error

        assert "moved" in repr(ask("GET", "key:1")).lower(), "a copy is not read unasked"
        assert ask("READONLY") in ("OK", b"OK")
        replies.append(ask("GET", "key:1"))
        assert "moved" in repr(ask("SET", "key:1", "1")).lower()
        ask("READWRITE")
        assert "moved" in repr(ask("GET", "key:1")).lower()
    assert replies.count("1") == 2, replies


readers = []
for options in [{}, {"protocol": 2}, {"protocol": 3}, {"read_from_replicas": True}]:
    r = connect(**options)
    shape(r)
    keys(r)
    whole(r)
    readers.append(r)
# What was written a moment ago is on all replicas before they are read at ONE.
copies(readers[-1])
core_reads_its_copies(r)

writer, reader = readers[0], readers[-1]
print("kill", flush=True)
sys.stdin.readline()
began = time.monotonic()
worst = 0
for index in range(300):
    asked = time.monotonic()
    assert writer.set(f"key:{index}", index + 1) is True, index
    worst = max(worst, time.monotonic() - asked)
for index in range(300):
    asked = time.monotonic()
    assert writer.get(f"key:{index}") == str(index + 1), index
    worst = max(worst, time.monotonic() - asked)
    while reader.get(f"key:{index}") != str(index + 1):  # at ONE a copy may be behind
        assert time.monotonic() - asked < 20, index
took = time.monotonic() - began
deadline = time.monotonic() + 20
while len(writer.get_primaries()) > 4 and time.monotonic() < deadline:
    writer.nodes_manager.initialize()
    writer = connect()
found = list(writer.scan_iter(match="key:*", count=50))
assert len(found) == len(set(found)) == 300, len(found)
assert writer.flushall(target_nodes=PRIMARIES)
assert writer.dbsize(target_nodes=PRIMARIES) == 0
print(f"ok redis-py {redis.__version__}, three nodes; without one 900 commands took {took:.2f} s, the slowest {worst:.2f} s")
