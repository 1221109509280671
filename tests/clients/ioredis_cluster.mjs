// What a user of ioredis' cluster client does, against the node at argv[2]:argv[3] (any of its ports);
// argv[4] has node_modules. Says `again` when the node is to be started with other cores, and goes on when it is
// told a line.

import assert from 'node:assert/strict';
import { once } from 'node:events';

import { connect, total, version, walk } from './ioredis.mjs';

async function keys(cluster) {
  await Promise.all(cluster.nodes('master').map((node) => node.flushall()));
  const indexes = [...Array(500).keys()];
  assert.deepEqual(
    await Promise.all(indexes.map((index) => cluster.set(`key:${index}`, index))),
    indexes.map(() => 'OK'),
  );
  assert.deepEqual(
    await Promise.all(indexes.map((index) => cluster.get(`key:${index}`))),
    indexes.map(String),
  );
  assert.equal(await cluster.mset('{m}1', '1', '{m}2', '2'), 'OK');
  assert.deepEqual(await cluster.mget('{m}1', '{m}2', '{m}3'), ['1', '2', null]);
  assert.equal(await cluster.incr('n'), 1);
  assert.equal(await cluster.set('t', '1', 'EX', 100), 'OK');
  assert.ok((await cluster.ttl('t')) > 90);
  assert.equal(await cluster.object('ENCODING', 'n'), 'int');
  assert.equal(await cluster.del('n'), 1);
}

async function transactions(cluster) {
  const replies = await cluster.multi().set('{tx}a', 1).incr('{tx}a').get('{tx}a').exec();
  assert.deepEqual(replies, [[null, 'OK'], [null, 2], [null, '2']]);
  const piped = await cluster.pipeline().set('{p}a', 1).get('{p}a').exec();
  assert.deepEqual(piped, [[null, 'OK'], [null, '1']]);
}

async function whole(cluster) {
  assert.deepEqual(await walk(cluster), { size: 505, found: 500, met: 500 });
}

let cluster;
for (const options of [{}, { scaleReads: 'slave' }, { scaleReads: 'all' }, { enableAutoPipelining: true }]) {
  cluster?.disconnect();
  cluster = await connect({ redisOptions: { maxRetriesPerRequest: 100 }, ...options });
  const crossed = await total(cluster, 'commands_sent_to_other_cores');
  const redirected = await total(cluster, 'commands_redirected');
  await keys(cluster);
  await transactions(cluster);
  await whole(cluster);
  assert.equal(await total(cluster, 'commands_sent_to_other_cores'), crossed, 'a command crossed cores');
  assert.equal(await total(cluster, 'commands_redirected'), redirected, 'a command was sent to the wrong core');
}

await assert.rejects(cluster.mget('a', 'b'), /CROSSSLOT|same slot/);

console.log('again');
await once(process.stdin, 'data');
// The client's map is the old one, and its connections have ended: it finds the keys all the same.
for (let index = 0; index < 500; index += 1) {
  assert.equal(await cluster.get(`key:${index}`), String(index));
}
console.log(`ok ioredis ${version}, cluster`);
process.exit(0);
