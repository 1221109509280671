// What a user of ioredis' cluster client does with three nodes, one of which is at argv[2]:argv[3]; argv[4] has
// node_modules. Says `kill` when a node is to be killed, and goes on when it is told a line.

import assert from 'node:assert/strict';
import { once } from 'node:events';

import { connect, total, version, walk } from './ioredis.mjs';

const indexes = [...Array(300).keys()];

async function keys(cluster) {
  assert.deepEqual(
    await Promise.all(indexes.map((index) => cluster.set(`key:${index}`, index))),
    indexes.map(() => 'OK'),
  );
  assert.equal(await cluster.mset('{m}1', '1', '{m}2', '2'), 'OK');
  assert.deepEqual(await cluster.mget('{m}1', '{m}2', '{m}3'), ['1', '2', null]);
  assert.equal(await cluster.unlink('{m}1', '{m}3'), 1);
  assert.equal(await cluster.touch('{m}2', '{m}3'), 1);
  assert.equal(await cluster.del('{m}2'), 1);
}

async function reads(cluster) {
  assert.deepEqual(
    await Promise.all(indexes.map((index) => cluster.get(`key:${index}`))),
    indexes.map(String),
  );
}

async function whole(cluster) {
  assert.equal(cluster.nodes('master').length, 6, 'two cores of each of three nodes');
  assert.deepEqual(await walk(cluster), { size: 301, found: 300, met: 300 });
}

let cluster;
for (const options of [{}, { scaleReads: 'slave' }, { scaleReads: 'all' }]) {
  cluster?.disconnect();
  cluster = await connect({
    retryDelayOnClusterDown: 100,
    retryDelayOnFailover: 100,
    maxRedirections: 50,
    slotsRefreshInterval: 1000,
    redisOptions: { maxRetriesPerRequest: 20 },
    ...options,
  });
  const redirected = await total(cluster, 'commands_redirected');
  await keys(cluster);
  await whole(cluster);
  await reads(cluster);
  assert.equal(cluster.nodes('slave').length, 3, 'the copies of each node');
  assert.equal(await total(cluster, 'commands_redirected'), redirected, 'a command was sent on');
}

console.log('kill');
await once(process.stdin, 'data');
const began = Date.now();
for (const index of indexes) {
  assert.equal(await cluster.set(`key:${index}`, index + 1), 'OK');
  while ((await cluster.get(`key:${index}`)) !== String(index + 1)) { // at ONE a copy may be behind
    assert.ok(Date.now() - began < 60_000, `key:${index}`);
  }
}
console.log(`ok ioredis ${version}, three nodes; without one 600 commands took ${Date.now() - began} ms`);
process.exit(0);
