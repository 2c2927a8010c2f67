// Shows what an etcd v3 endpoint answers to the calls of Node's etcd3.
//
// Usage: node tour.js HOST:PORT PART..
//
// Each part works in a namespace of its own, empties it first, and prints one line an answer. Revisions are printed
// relative to the one the part began at, leases by the order in which they appear.
'use strict';

const { Etcd3, Range } = require('etcd3');

const MILLISECONDS_MAX = 20000;
// Of leases that end by themselves or are kept: long enough for a busy machine to use or renew them.
const SHORT_TTL = 5;

class Tour {
  constructor(endpoint, name) {
    this.client = new Etcd3({ hosts: [endpoint] });
    this.prefix = `conformance/node/${name}/`;
    this.space = this.client.namespace(this.prefix);
    // Ids in the order of their first appearance.
    this.leases = [];
  }

  async begin() {
    const answer = await this.space.delete().all();
    this.base = BigInt(answer.header.revision);
  }

  revision(text) {
    const number = BigInt(text);
    if (number === 0n) return 'r0';
    return `r${number < this.base ? '' : '+'}${number - this.base}`;
  }

  lease(id) {
    if (String(id) === '0') return 'none';
    if (!this.leases.includes(String(id))) this.leases.push(String(id));
    return `L${this.leases.indexOf(String(id)) + 1}`;
  }

  plain(text) {
    const plain = String(text).split(this.prefix).join('');
    return this.leases.reduce((now, id) => now.split(id).join(this.lease(id)), plain);
  }

  pair(kv) {
    if (!kv || kv.key.length === 0) return 'nothing';
    const key = JSON.stringify(this.plain(kv.key.toString('latin1')));
    const value = JSON.stringify(kv.value.toString('latin1'));
    return `${key} = ${value} create ${this.revision(kv.create_revision)} mod ${this.revision(kv.mod_revision)}` +
      ` version ${kv.version} lease ${this.lease(kv.lease)}`;
  }

  // Prints what the call yields, or the class and text of what it throws.
  async attempt(name, call) {
    try {
      say(`${name}: ${await call()}`);
    } catch (error) {
      say(`${name}: ${error.constructor.name} ${this.plain(error.message)}`);
    }
  }

  async put(key, value, change = builder => builder) {
    await this.attempt(`put ${key}`, async () => {
      const answer = await change(this.space.put(key).value(value)).exec();
      return `${this.revision(answer.header.revision)} before ${this.pair(answer.prev_kv)}`;
    });
  }

  async list(name, builder) {
    await this.attempt(name, async () => {
      const answer = await builder.exec();
      const lines = answer.kvs.map(kv => `\n  ${this.pair(kv)}`);
      return `${this.revision(answer.header.revision)} count ${answer.count} more ${answer.more}${lines.join('')}`;
    });
  }
}

function say(line) {
  process.stdout.write(`${line}\n`);
}

// The value of the promise, or a word for its absence.
function within(promise) {
  let timer;
  const late = new Promise(resolve => {
    timer = setTimeout(() => resolve('nothing for 20 seconds'), MILLISECONDS_MAX);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function kv(tour) {
  for (let i = 0; i < 6; i++) await tour.put(`k${i}`, `v${5 - i}`);
  await tour.put('k3', 'again');
  await tour.attempt('put and get what was', async () => tour.pair(await tour.space.put('k3').value('third').getPrevious()));
  await tour.attempt('touch', async () => tour.revision((await tour.space.put('k4').touch()).header.revision));
  await tour.attempt('touch absent', () => tour.space.put('none').touch());
  await tour.put('k5', '', builder => builder.ignoreLease());
  await tour.attempt('string', () => tour.space.get('k3').string());
  await tour.attempt('number', () => tour.space.get('k3').number());
  await tour.attempt('absent', () => tour.space.get('none').string());
  await tour.attempt('exists', () => tour.space.get('k3').exists());
  await tour.attempt('serializable', () => tour.space.get('k3').serializable(true).string());
  await tour.attempt('revision', () => tour.space.get('k3').revision(String(tour.base + 4n)).string());
  await tour.attempt('of the future', () => tour.space.get('k3').revision(String(tour.base + 1000n)).string());
  await tour.list('all', tour.space.getAll());
  await tour.list('prefix', tour.space.getAll().prefix('k'));
  await tour.list('range', tour.space.getAll().inRange({ start: 'k1', end: 'k4' }));
  await tour.list('limit', tour.space.getAll().limit(2));
  for (const target of ['Key', 'Version', 'Create', 'Mod', 'Value']) {
    for (const order of ['None', 'Ascend', 'Descend']) {
      await tour.attempt(`by ${target} ${order}`, () => tour.space.getAll().sort(target, order).keys());
    }
  }
  await tour.attempt('count', () => tour.space.getAll().count());
  await tour.list('bounded', tour.space.getAll().minModRevision(String(tour.base + 6n)));
  await tour.list('bounded', tour.space.getAll().maxCreateRevision(String(tour.base + 3n)));
  await tour.attempt('delete', async () => (await tour.space.delete().key('k0')).deleted);
  await tour.attempt('delete absent', async () => (await tour.space.delete().key('k0')).deleted);
  await tour.attempt('delete with what was', async () =>
    (await tour.space.delete().key('k1').getPrevious()).map(pair => tour.pair(pair)));
  await tour.attempt('delete range', async () => (await tour.space.delete().range(Range.from({ start: 'k2', end: 'k4' }))).deleted);
  await tour.list('left', tour.space.getAll());
  await tour.put('large', 'x'.repeat(3 << 19));
  const compact = revision => tour.attempt(`compact ${tour.revision(revision)}`, async () =>
    tour.revision((await tour.client.kv.compact({ revision: String(revision) })).header.revision));
  await compact(tour.base + 5n);
  await compact(tour.base + 5n);
  await compact(tour.base + 1000n);
  await tour.attempt('compacted', () => tour.space.get('k3').revision(String(tour.base + 4n)).string());
}

async function txn(tour) {
  const { space } = tour;
  await tour.put('a', '1');
  const run = async (name, column, comparator, value) => {
    await tour.attempt(`${name} ${column} ${comparator} ${tour.plain(value)}`, async () => {
      const wanted = typeof value === 'bigint' ? String(tour.base + value) : value;
      const answer = await space.if('a', column, comparator, wanted).then(space.get('a')).else(space.get('b')).commit();
      return `${answer.succeeded} ${tour.revision(answer.header.revision)} ` +
        answer.responses.map(response => response.response_range.kvs.map(pair => tour.pair(pair)));
    });
  };
  for (const comparator of ['==', '!=', '>', '<']) {
    await run('if', 'Value', comparator, '1');
    await run('if', 'Version', comparator, 1);
    await run('if', 'Create', comparator, 1n);
    await run('if', 'Mod', comparator, 1n);
    await run('if', 'Lease', comparator, 0);
  }
  await tour.attempt('writes', async () => {
    const answer = await space.if('none', 'Version', '==', 0).and('a', 'Value', '==', '1')
      .then(space.put('b').value('2'), space.get('b'), space.delete().key('a')).commit();
    return `${answer.succeeded} ${tour.revision(answer.header.revision)} ${answer.responses.map(one => one.response)}`;
  });
  await tour.attempt('same key twice', async () =>
    (await space.if('none', 'Version', '==', 0).then(space.put('a').value('1'), space.put('a').value('2')).commit()).succeeded);
  await tour.list('after', space.getAll());
  await tour.attempt('stm', async () => {
    await space.put('counter').value('0');
    const add = () => space.stm({ retries: 100 }).transact(async memory => {
      await memory.put('counter').value(Number(await memory.get('counter').number()) + 1);
    });
    await Promise.all([add(), add(), add(), add()]);
    return space.get('counter').string();
  });
}

// The next events of a watcher, as a function that yields one after the other.
function eventsOf(tour, watcher) {
  const ready = [];
  const waiting = [];
  const push = text => (waiting.length > 0 ? waiting.shift()(text) : ready.push(text));
  watcher.on('put', (pair, previous) => push(`PUT ${tour.pair(pair)} before ${tour.pair(previous)}`));
  watcher.on('delete', (pair, previous) => push(`DELETE ${tour.pair(pair)} before ${tour.pair(previous)}`));
  watcher.on('error', error => push(`${error.constructor.name} ${tour.plain(error.message)}`));
  watcher.on('end', () => push('end'));
  return () => within(ready.length > 0 ? Promise.resolve(ready.shift()) : new Promise(resolve => waiting.push(resolve)));
}

async function collect(name, next, count) {
  for (let i = 0; i < count; i++) say(`${name}: ${await next()}`);
}

async function watch(tour) {
  const { space } = tour;
  const oneWatcher = await space.watch().key('a').create();
  const one = eventsOf(tour, oneWatcher);
  const all = eventsOf(tour, await space.watch().prefix('').withPreviousKV().create());
  const deletes = eventsOf(tour, await space.watch().prefix('').only('delete').create());
  await tour.put('a', '1');
  await tour.put('b', '2');
  await tour.put('a', '3');
  await space.delete().key('b');
  await collect('one', one, 2);
  await collect('all', all, 4);
  await collect('deletes', deletes, 1);
  await oneWatcher.cancel();
  await collect('one', one, 1);
  await tour.put('a', '4');
  await collect('all', all, 1);
  const past = eventsOf(tour, await space.watch().key('a').startRevision(String(tour.base + 1n)).create());
  await collect('past', past, 3);
  await tour.client.kv.compact({ revision: String(tour.base + 4n) });
  await tour.attempt('compacted', async () => {
    const watcher = await space.watch().key('a').startRevision(String(tour.base + 2n)).create();
    return eventsOf(tour, watcher)();
  });
  await tour.put('a', '5');
  await collect('all', all, 1);
}

async function lease(tour) {
  const { space } = tour;
  const events = eventsOf(tour, await space.watch().prefix('').create());
  const kept = space.lease(SHORT_TTL);
  await tour.attempt('granted', async () => tour.lease(await kept.grant()));
  await tour.attempt('put', async () => tour.revision((await kept.put('kept').value('1').exec()).header.revision));
  const left = space.lease(SHORT_TTL, { autoKeepAlive: false });
  await left.put('left').value('2').exec();
  await collect('events', events, 3);
  await tour.attempt('kept', () => space.get('kept').string());
  await tour.attempt('keep alive once', async () => (await kept.keepaliveOnce()).TTL);
  await tour.attempt('keep alive of the expired', async () => (await left.keepaliveOnce()).TTL);
  await tour.attempt('time to live', async () => {
    const answer = await tour.client.leaseClient.leaseTimeToLive({ ID: await kept.grant(), keys: true });
    return `${answer.grantedTTL} ${answer.keys.map(key => tour.plain(key.toString()))}`;
  });
  await tour.attempt('revoke', () => kept.revoke());
  await collect('events', events, 1);
  await tour.attempt('revoke the expired', () => left.revoke());
  const lost = space.lease(SHORT_TTL);
  const gone = new Promise(resolve => lost.on('lost', error => resolve(error.constructor.name)));
  await lost.put('lost').value('3').exec();
  await tour.client.leaseClient.leaseRevoke({ ID: await lost.grant() });
  say(`lost: ${await within(gone)}`);
  await collect('events', events, 2);
  await tour.attempt('too large ttl', async () => (await tour.client.leaseClient.leaseGrant({ TTL: '9000000001' })).ID);
}

async function lock(tour) {
  const first = tour.space.lock('lock').ttl(30);
  const second = tour.space.lock('lock').ttl(30);
  await tour.attempt('first', async () => ((await first.acquire()) === first ? 'acquired' : 'what'));
  await tour.attempt('second', () => second.acquire());
  await tour.attempt('release', () => first.release());
  await tour.attempt('do', () => tour.space.lock('lock').do(() => 'done'));
  await tour.list('after', tour.space.getAll());
}

async function election(tour) {
  const first = tour.space.election('post', 10);
  const second = tour.space.election('post', 10);
  await tour.attempt('nobody leads', () => first.leader());
  const observer = await second.observe();
  const changes = [];
  const waiting = [];
  observer.on('change', value => (waiting.length > 0 ? waiting.shift()(value) : changes.push(value)));
  const change = () => within(changes.length > 0 ? Promise.resolve(changes.shift()) : new Promise(resolve => waiting.push(resolve)));
  const a = first.campaign('a');
  await tour.attempt('a', async () => ((await within(a.wait())) === a ? 'elected' : 'not elected'));
  await collect('observed', change, 1);
  await tour.attempt('leader', () => second.leader());
  await a.proclaim('a proclaims');
  await collect('observed', change, 1);
  const b = second.campaign('b');
  const elected = within(b.wait());
  await b.getCampaignKey();
  await tour.attempt('a resigns', () => a.resign());
  await tour.attempt('b', async () => ((await elected) === b ? 'elected' : 'not elected'));
  await collect('observed', change, 1);
  await tour.attempt('a proclaims without office', () => a.proclaim('late'));
  await tour.attempt('b resigns', () => b.resign());
  await observer.cancel();
}

async function maintenance(tour) {
  const { client } = tour;
  await tour.put('a', '1');
  await tour.attempt('status', async () => {
    const status = await client.maintenance.status();
    return `${status.version} size ${status.dbSize !== '0'} leader ${status.leader === status.header.member_id}`;
  });
  await tour.attempt('members', async () => {
    const { members } = await client.cluster.memberList({});
    return members.map(one => `named ${one.name !== ''} peer ${one.peerURLs.length} client ${one.clientURLs.length}`);
  });
  await tour.attempt('alarms', async () => (await client.maintenance.alarm({})).alarms.length);
  await tour.attempt('defragment', async () => JSON.stringify(await client.maintenance.defragment()));
  await tour.attempt('hash', async () => (await client.maintenance.hash()).hash > 0);
}

async function auth(tour) {
  await tour.attempt('roles', () => tour.client.getRoles());
  await tour.attempt('users', async () => (await tour.client.getUsers()).length);
  await tour.attempt('delete a user', () => tour.client.user('nobody').delete());
  await tour.attempt('enable', () => tour.client.auth.authEnable());
}

async function snapshot(tour) {
  await tour.attempt('snapshot', async () => {
    const stream = await tour.client.maintenance.snapshot();
    return within(new Promise((resolve, reject) => {
      let length = 0;
      stream.on('data', part => (length += part.blob.length));
      stream.on('end', () => resolve(length % 512));
      stream.on('error', reject);
    }));
  });
}

const PARTS = { kv, txn, watch, lease, lock, election, maintenance, auth, snapshot };

async function main() {
  const [endpoint, ...names] = process.argv.slice(2);
  if (names.length === 0 || names.some(name => !(name in PARTS))) {
    process.stderr.write('usage: node tour.js HOST:PORT PART..\n');
    process.exit(2);
  }
  for (const name of names) {
    say(`== ${name}`);
    const tour = new Tour(endpoint, name);
    await tour.begin();
    await PARTS[name](tour);
    tour.client.close();
  }
  process.exit(0);
}

main().catch(error => {
  say(`stopped: ${error.constructor.name} ${error.message}`);
  process.exit(1);
});
