// What the scripts of ioredis share: argv[2]:argv[3] is a port to begin with, argv[4] has node_modules.

import { once } from 'node:events';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const require = createRequire(join(process.argv[4], 'here.js'));
const { Cluster } = require('ioredis');
export const { version } = require('ioredis/package.json');

export async function connect(options) {
  const cluster = new Cluster([{ host: process.argv[2], port: Number(process.argv[3]) }], {
    clusterRetryStrategy: (times) => (times < 100 ? 100 : null),
    ...options,
  });
  cluster.on('error', () => {}); // while a node is down
  await once(cluster, 'ready');
  return cluster;
}

// The sum of what INFO of all owners says under this name.
export async function total(cluster, name) {
  const infos = await Promise.all(cluster.nodes('master').map((node) => node.info()));
  return infos.reduce((sum, info) => sum + Number(info.match(new RegExp(`^${name}:(\\d+)`, 'm'))[1]), 0);
}

// How many keys all owners have; and which of those named `key:` SCAN tells of, and how many times in all.
export async function walk(cluster) {
  const nodes = cluster.nodes('master');
  const sizes = await Promise.all(nodes.map((node) => node.dbsize()));
  const found = new Set();
  let met = 0;
  for (const node of nodes) {
    for await (const page of node.scanStream({ match: 'key:*', count: 7 })) {
      page.forEach((key) => found.add(key));
      met += page.length;
    }
  }
  return { size: sizes.reduce((sum, size) => sum + size), found: found.size, met };
}
