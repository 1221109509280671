"""What a user of redis-py's cluster client does, against the node at argv[1]:argv[2] (any of its ports).

Says `again` when the node is to be started with other cores, and goes on when it is told a line.
An AssertionError is a failure.
"""

import sys

import redis
from redis.cluster import ClusterNode, RedisCluster

HOST, PORT = sys.argv[1], int(sys.argv[2])
ALL = RedisCluster.ALL_NODES


def raises(kind, call):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"{kind.__name__} expected")


def connect(**options):
    return RedisCluster(startup_nodes=[ClusterNode(HOST, PORT)], decode_responses=True, **options)


def total(r, name):
    """A number of INFO, summed over the cores, each asked at its own port."""
    return sum(info[name] for info in r.info(target_nodes=ALL).values())


def keys(r):
    assert r.flushall(target_nodes=ALL)
    for index in range(500):
        assert r.set(f"key:{index}", index) is True
        assert r.get(f"key:{index}") == str(index)
    assert r.incr("n") == 1 and r.append("s", "abc") == 3 and r.getdel("s") == "abc"
    assert r.set("t", "1", ex=100) is True and 95 <= r.ttl("t") <= 100
    assert r.object("encoding", "n") == "int" and r.memory_usage("n") > 0
    assert r.delete("t", "n") == 2, "the client asks each owner"
    assert r.mset_nonatomic({f"m:{index}": index for index in range(50)})
    assert r.mget_nonatomic([f"m:{index}" for index in range(50)]) == [str(i) for i in range(50)]
    assert r.mset({"{m}1": "1", "{m}2": "2"}) is True and r.mget("{m}1", "{m}2") == ["1", "2"]
    assert r.exists("{m}1", "{m}2", "absent") == 2
    assert "not an integer" in raises(redis.ResponseError, lambda: (r.set("w", "x"), r.incr("w")))


def whole(r):
    names = r.keys(target_nodes=ALL)
    assert len(names) == len(set(names)) == r.dbsize(target_nodes=ALL) == 553, len(names)
    found = list(r.scan_iter(match="key:*", count=7))
    assert len(found) == len(set(found)) == 500, len(found)
    home = r.get_node_from_key("key:1")
    own = r.keys(target_nodes=home)
    assert "key:1" in own and all(r.get_node_from_key(name) == home for name in own)
    assert r.cluster_countkeysinslot(r.keyslot("key:1")) == 1
    assert r.cluster_get_keys_in_slot(r.keyslot("key:1"), 5) == ["key:1"]
    assert r.cluster_keyslot("key:1") == r.keyslot("key:1")
    assert r.randomkey(target_nodes=home) in own


def pipelines(r):
    with r.pipeline() as pipe:
        for index in range(300):
            pipe.set(f"p:{index}", index).get(f"p:{index}")
        replies = pipe.execute()
    assert replies[0::2] == [True] * 300 and replies[1::2] == [str(index) for index in range(300)]
    with r.pipeline(transaction=True) as pipe:
        pipe.set("{tx}a", 1).incr("{tx}a").get("{tx}a")
        assert pipe.execute()[1:] == [2, "2"]
    with r.pipeline(transaction=True) as pipe:
        pipe.watch("{tx}a")
        other.set("{tx}a", 7)
        pipe.multi()
        pipe.set("{tx}a", 9)
        raises(redis.WatchError, pipe.execute)
    assert r.get("{tx}a") == "7"


def about(r):
    nodes = r.get_primaries()
    assert r.cluster_info(target_nodes=nodes[0])["cluster_state"] == "ok"
    told = r.cluster_nodes()
    assert len(told) == len(nodes) and all(node["connected"] for node in told.values()), told
    assert {f"{node.host}:{node.port}" for node in nodes} == {name.split("@")[0] for name in told}
    assert len(r.cluster_shards()) == len(nodes)
    ids = {r.cluster_myid(node) for node in nodes}
    assert len(ids) == len(nodes)
    assert r.cluster_links(nodes[0]) == []
    assert all(info["cluster_enabled"] == 1 for info in r.info(target_nodes=ALL).values())
    assert r.ping(target_nodes=ALL) and r.readonly(target_nodes=nodes[0]) and r.readwrite(target_nodes=nodes[0])


for options in [{}, {"protocol": 2}, {"protocol": 3}, {"read_from_replicas": True}]:
    r, other = connect(**options), connect(**options)
    crossed, redirected = (total(r, f"commands_{name}") for name in ["sent_to_other_cores", "redirected"])
    keys(r)
    whole(r)
    pipelines(r)
    about(r)
    assert total(r, "commands_sent_to_other_cores") == crossed, "a command crossed cores"
    assert total(r, "commands_redirected") == redirected, "a command was sent to the wrong core"
    other.close()

print("again", flush=True)
sys.stdin.readline()
# The client's map is the old one, and its connections have ended: it finds the keys all the same.
for index in range(500):
    assert r.get(f"key:{index}") == str(index), index
print(f"ok redis-py {redis.__version__}, cluster")
