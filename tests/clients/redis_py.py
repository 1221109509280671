"""What a user of redis-py does, against the node at argv[1]:argv[2]. An AssertionError is a failure."""

import sys
import threading
import time

import redis

HOST, PORT = sys.argv[1], int(sys.argv[2])


def raises(kind, call):
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"{kind.__name__} expected")


def strings(r):
    assert r.set("a", "1") is True
    assert r.get("a") == "1"
    assert r.get("absent") is None
    assert r.set("a", "2", nx=True) is None
    assert r.set("a", "2", xx=True) is True
    assert r.set("a", "3", get=True) == "2"
    assert r.set("b", "x", ex=100) is True
    assert 95 <= r.ttl("b") <= 100
    assert r.set("b", "y", keepttl=True) is True
    assert 95 <= r.ttl("b") <= 100
    assert r.set("b", "z", px=50_000) is True
    assert 45_000 <= r.pttl("b") <= 50_000
    assert r.set("b", "z", exat=int(time.time()) + 1000) is True
    assert 990 <= r.ttl("b") <= 1000
    assert r.persist("b") is True and r.ttl("b") == -1
    assert r.ttl("absent") == -2
    assert r.expire("b", 50) is True and r.expire("absent", 50) is False
    assert r.expire("b", 10, gt=True) is False
    assert r.mset({"m1": "1", "m2": "2", "m3": "3"}) is True
    assert r.mget("m1", "absent", "m3") == ["1", None, "3"]
    assert r.incr("n") == 1 and r.incrby("n", 41) == 42 and r.decr("n") == 41
    assert r.incrbyfloat("f", 1.5) == 1.5
    assert r.append("s", "abc") == 3 and r.append("s", "def") == 6
    assert r.getrange("s", 1, -2) == "bcde" and r.strlen("s") == 6
    assert r.setrange("s", 3, "X") == 6 and r.get("s") == "abcXef"
    assert r.getdel("s") == "abcXef" and r.exists("s") == 0
    assert r.getex("b", ex=7) == "z" and 0 < r.ttl("b") <= 7
    assert r.exists("m1", "m2", "absent", "m1") == 3
    assert r.touch("m1", "absent") == 1 and r.type("m1") == "string" and r.type("absent") == "none"
    assert r.delete("m1", "m2", "absent") == 2 and r.unlink("m3") == 1
    assert "not an integer" in raises(redis.ResponseError, lambda: (r.set("w", "x"), r.incr("w")))
    assert "unknown command" in raises(redis.ResponseError, lambda: r.lpush("list", "1"))
    raises(redis.ResponseError, lambda: r.eval("return 1", 0))


def binary(port_options):
    r = redis.Redis(HOST, PORT, **port_options)
    every_byte = bytes(range(256)) * 100
    assert r.set(b"\x00\r\n\xff", every_byte) is True
    assert r.get(b"\x00\r\n\xff") == every_byte
    large = b"x" * (8 << 20)
    assert r.set("large", large) is True and r.get("large") == large
    r.close()


def pipelines(r):
    with r.pipeline() as pipe:  # MULTI and EXEC
        for index in range(100):
            pipe.set(f"p:{index}", index).get(f"p:{index}").incr("p:sum", index)
        replies = pipe.execute()
    assert replies[0::3] == [True] * 100
    assert replies[1::3] == [str(index) for index in range(100)]
    assert replies[-1] == sum(range(100))
    with r.pipeline(transaction=False) as pipe:
        for index in range(2000):
            pipe.set(f"q:{index}", index)
        for index in range(2000):
            pipe.get(f"q:{index}")
        replies = pipe.execute()
    assert replies == [True] * 2000 + [str(index) for index in range(2000)]
    pipe = r.pipeline()
    pipe.set("p:bad", "x").incr("p:bad").set("p:after", "1")
    assert "not an integer" in raises(redis.ResponseError, pipe.execute)
    assert r.get("p:after") == "1", "one command's error stops no other"
    pipe = r.pipeline()
    pipe.set("p:never", "1").execute_command("NOSUCH")
    raises(redis.ResponseError, pipe.execute)
    assert r.get("p:never") is None, "EXECABORT: nothing is done"


def watch(r):
    r.set("seat", "free")

    def take(pipe):
        if pipe.get("seat") == "free":
            other.set("seat", "taken")
        pipe.multi()
        pipe.set("seat", "mine")

    other = redis.Redis(HOST, PORT, decode_responses=True)
    with r.pipeline() as pipe:
        pipe.watch("seat")
        take(pipe)
        raises(redis.WatchError, pipe.execute)
    assert r.get("seat") == "taken"
    with r.pipeline() as pipe:
        pipe.watch("seat")
        take(pipe)
        assert pipe.execute() == [True]
    assert r.get("seat") == "mine"

    # Threads that count by WATCH: none of the counts is lost.
    r.set("count", 0)

    def count():
        mine = redis.Redis(HOST, PORT, decode_responses=True)
        for _ in range(25):
            mine.transaction(
                lambda pipe: (value := int(pipe.get("count")), pipe.multi(), pipe.set("count", value + 1)),
                "count",
            )
        mine.close()

    threads = [threading.Thread(target=count) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert r.get("count") == "100", r.get("count")
    other.close()


def lock(r):
    """A lock without Lua: SET NX PX, and given back by WATCH only by its owner."""

    def acquire(owner):
        return r.set("lock", owner, nx=True, px=300)

    def release(owner):
        def give_back(pipe):
            mine = pipe.get("lock") == owner
            pipe.multi()
            if mine:
                pipe.delete("lock")

        return r.transaction(give_back, "lock") == [1]

    assert acquire("one") is True and acquire("two") is None
    assert release("two") is False and r.get("lock") == "one"
    assert release("one") is True and acquire("two") is True
    time.sleep(0.35)
    assert acquire("three") is True, "a lock that was not given back ends by itself"
    assert release("two") is False and release("three") is True
    assert r.lock("redis-py's own", timeout=5).acquire(blocking=False) is True


def scan(r):
    r.flushdb()
    assert r.dbsize() == 0
    with r.pipeline(transaction=False) as pipe:
        for index in range(1000):
            pipe.set(f"scan:{index}", index)
        pipe.set("other", 1)
        pipe.execute()
    for options in [{}, {"count": 7}, {"count": 5000}]:
        found = list(r.scan_iter(match="scan:*", **options))
        assert len(found) == 1000 and len(set(found)) == 1000, (options, len(found))
    assert sorted(r.keys("scan:99*")) == sorted(f"scan:{i}" for i in [99, *range(990, 1000)])
    assert r.dbsize() == 1001 and r.randomkey() is not None


def about(r, protocol):
    assert r.ping() is True and r.echo("x") == "x"
    assert r.client_setname("me") and r.client_getname() == "me"
    assert any(client["name"] == "me" for client in r.client_list())
    assert r.client_info()["resp"] == str(protocol)
    assert "redis_version" in r.info() and r.info("keyspace")["db0"]["keys"] > 0
    assert r.config_get("databases") == {"databases": "1"}
    assert r.command_count() > 50 and "get" in r.command()
    seconds, micros = r.time()
    assert abs(seconds - time.time()) < 5
    assert r.object("encoding", "a") == "int"
    assert r.memory_usage("a") > 0
    assert r.select(0)
    raises(redis.ResponseError, lambda: r.select(1))


def main():
    for options in [{}, {"protocol": 2}, {"protocol": 3}]:
        r = redis.Redis(HOST, PORT, decode_responses=True, **options)
        r.flushall()
        strings(r)
        pipelines(r)
        watch(r)
        lock(r)
        binary(options)
        about(r, r.connection_pool.get_connection().protocol if not options else options["protocol"])
        scan(r)
        r.close()
    print(f"ok redis-py {redis.__version__}")


main()
