// What a user of node-redis does, against the node at argv[2]:argv[3]; argv[4] has node_modules.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const require = createRequire(join(process.argv[4], 'here.js'));
const { createClient } = require('redis');
const { version } = require('redis/package.json');
const url = `redis://${process.argv[2]}:${process.argv[3]}`;

async function strings(client) {
  assert.equal(await client.set('a', '1'), 'OK');
  assert.equal(await client.get('a'), '1');
  assert.equal(await client.get('absent'), null);
  assert.equal(await client.sendCommand(['SET', 'a', '2', 'NX']), null);
  assert.equal(await client.sendCommand(['SET', 'a', '2', 'GET']), '1');
  assert.equal(await client.setEx('b', 100, 'x'), 'OK');
  const ttl = await client.ttl('b');
  assert.ok(ttl > 95 && ttl <= 100, `TTL ${ttl}`);
  assert.equal(await client.setNX('b', 'y'), 0);
  assert.equal(await client.mSet({ m1: '1', m2: '2', m3: '3' }), 'OK');
  assert.deepEqual(await client.mGet(['m1', 'absent', 'm3']), ['1', null, '3']);
  assert.equal(await client.incrBy('n', 41), 41);
  assert.equal(await client.incr('n'), 42);
  assert.equal(Number(await client.incrByFloat('f', 1.5)), 1.5);
  assert.equal(await client.append('s', 'abc'), 3);
  assert.equal(await client.getDel('s'), 'abc');
  assert.equal(await client.exists(['m1', 'm2', 'absent']), 2);
  assert.equal(await client.del(['m1', 'm2', 'absent']), 2);
  await assert.rejects(client.incr('b'), /not an integer/);
  await assert.rejects(client.sendCommand(['LPUSH', 'list', '1']), /unknown command/);
  const many = Array.from({ length: 1000 }, (_, index) => index);
  await Promise.all(many.map((index) => client.set(`many:${index}`, `${index}`)));
  const values = await Promise.all(many.map((index) => client.get(`many:${index}`)));
  assert.deepEqual(values, many.map(String), 'a pipeline keeps its order');
}

async function transactions(client) {
  const replies = await client.multi().set('t', '1').incr('t').get('t').mGet(['t', 'absent']).exec();
  assert.deepEqual(replies, ['OK', 2, '2', ['2', null]]);
  await client.set('seat', 'free');
  const other = await client.duplicate().connect();
  await client.watch('seat');
  await other.set('seat', 'taken');
  await assert.rejects(client.multi().set('seat', 'mine').exec(), /watched keys/i);
  assert.equal(await client.get('seat'), 'taken');
  await client.watch('seat');
  assert.deepEqual(await client.multi().set('seat', 'mine').exec(), ['OK']);
  assert.equal(await other.get('seat'), 'mine');
  await other.close();
}

async function scan(client) {
  await client.flushAll();
  const keys = Array.from({ length: 1000 }, (_, index) => `scan:${index}`);
  await Promise.all([...keys, 'other'].map((key) => client.set(key, '1')));
  const found = [];
  for await (const page of client.scanIterator({ MATCH: 'scan:*', COUNT: 50 })) {
    found.push(...[page].flat());
  }
  assert.deepEqual(found.sort(), keys.sort());
  assert.equal(await client.dbSize(), 1001);
}

async function about(client) {
  assert.equal(await client.ping(), 'PONG');
  assert.match(await client.info(), /redis_version:/);
  await client.clientSetName('me');
  assert.equal(await client.clientGetName(), 'me');
  assert.equal((await client.configGet('databases')).databases, '1');
  assert.ok((await client.commandCount()) > 50);
}

for (const options of [{}, { RESP: 2 }, { RESP: 3 }]) {
  const client = createClient({ url, ...options, socket: { reconnectStrategy: false } });
  client.on('error', (error) => console.error(error));
  await client.connect();
  await client.flushAll();
  await strings(client);
  await transactions(client);
  await about(client);
  await scan(client);
  await client.close();
}
console.log(`ok node-redis ${version}`);
