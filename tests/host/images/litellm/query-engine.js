// Stands in for Prisma's query engine, a binary that is downloaded at run time. It serves the same HTTP protocol to
// LiteLLM's database client and runs the queries in the engine's WebAssembly form, which Prisma publishes as a package:
// planning, SQL and results are Prisma's own. What is done here is the way in and out: GraphQL to the engine's JSON
// protocol and back, the pool of connections, and the errors of the network.
'use strict';
// Optimising the engine's code takes longer than a test's few queries.
require('v8').setFlagsFromString('--liftoff-only');
process.env.TZ = 'UTC';

const fs = require('fs');
const http = require('http');
const { parse } = require('graphql');
const { Pool } = require('pg');
const { PrismaPg } = require('@prisma/adapter-pg');
const { bindAdapter } = require('@prisma/driver-adapter-utils');

const TRACE = JSON.stringify({ traceparent: '00-10-10-00' });
const NETWORK = /^(ECONNREFUSED|ECONNRESET|ENOTFOUND|EAI_AGAIN|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH|EPIPE)$/;

// ------------------------------------------------------------------------------------------------- the datamodel ----
const datamodel = fs.readFileSync(process.env.PRISMA_DML_PATH, 'utf8');
const models = {};
for (const [, name, body] of datamodel.matchAll(/^model\s+(\w+)\s*\{([\s\S]*?)^\}/gm)) {
  models[name] = Object.fromEntries([...body.matchAll(/^\s*(\w+)\s+(\w+)(?:\[\]|\?)?(?=\s|$)/gm)].map(([, field, type]) => [field, type]));
}

// -------------------------------------------------------------------------------------------------- the database ----
function settings() {
  const override = process.env.OVERWRITE_DATASOURCES ? JSON.parse(process.env.OVERWRITE_DATASOURCES) : [];
  const url = new URL((override[0] && override[0].url) || process.env.DATABASE_URL);
  const option = name => url.searchParams.get(name);
  const schema = option('schema') || 'public';
  const max = Number(option('connection_limit')) || 10;
  const seconds = Number(option('pool_timeout') ?? option('connect_timeout') ?? 10);
  const ssl = option('sslmode') && !/^(disable|prefer)$/.test(option('sslmode')) ? { rejectUnauthorized: option('sslaccept') === 'strict' } : undefined;
  const socket = url.searchParams.get('host');
  url.search = socket ? `?host=${encodeURIComponent(socket)}` : '';
  return {
    schema,
    server: `\`${url.hostname}:${url.port || 5432}\``,
    pool: { connectionString: url.toString(), max, ssl, connectionTimeoutMillis: seconds * 1000, idleTimeoutMillis: 300000, options: `-c timezone=UTC -c search_path="${schema}"`, application_name: 'prisma' },
  };
}
const database = settings();
const pool = new Pool(database.pool);
// A database that goes away takes its connections with it: the pool makes others when they are asked for.
pool.on('error', () => {});
pool.on('connect', client => client.on('error', () => {}));

const failure = (error_code, message, meta = {}) => ({ errors: [{ error: message, user_facing_error: { is_panic: false, message, meta, error_code } }] });

function failureOf(e) {
  const inner = (e.errors && e.errors[0]) || e;
  if (NETWORK.test(inner.code)) return failure('P1001', `Can't reach database server at ${database.server}\n\nPlease make sure your database server is running at ${database.server}.`);
  if (/^57P0/.test(inner.code)) return failure('P1001', `Can't reach database server at ${database.server}: ${inner.message}`);
  if (inner.code === '28P01' || inner.code === '28000') return failure('P1000', `Authentication failed against database server at ${database.server}, the provided database credentials are not valid.`);
  if (inner.code === '3D000') return failure('P1003', `The database does not exist on the database server at ${database.server}: ${inner.message}`);
  if (/timeout exceeded when trying to connect/.test(inner.message)) return failure('P2024', `Timed out fetching a new connection from the connection pool. (${inner.message})`);
  if (/Connection terminated|not queryable|Client was closed/i.test(inner.message)) return failure('P1017', 'Server has closed the connection.');
  return undefined;
}

// ----------------------------------------------------------------------------------------------------- the engine ----
const bindings = require('@prisma/client/runtime/query_engine_bg.postgresql.js');
const wasm = fs.readFileSync(require.resolve('@prisma/client/runtime/query_engine_bg.postgresql.wasm'));
bindings.__wbg_set_wasm(new WebAssembly.Instance(new WebAssembly.Module(wasm), { './query_engine_bg.js': bindings }).exports);
const adapter = bindAdapter(new PrismaPg(pool, { schema: database.schema }));
const engine = new bindings.QueryEngine(
  { datamodel, logQueries: false, ignoreEnvVarErrors: true, datasourceOverrides: {}, env: process.env, logLevel: 'error', configDir: '.', engineProtocol: 'json' },
  () => {}, adapter);

// What the engine says of an error that came from the driver is only its number in the adapter's registry.
function explain(result) {
  const errors = result.errors || (result.error_code && [{ error: result.message, user_facing_error: result }]);
  if (!errors) return result;
  for (const e of errors) {
    const facing = e.user_facing_error || {};
    if (facing.error_code === 'P2036' && facing.meta) {
      const registered = adapter.errorRegistry.consumeError(facing.meta.id);
      delete adapter.errorRegistry.registeredErrors[facing.meta.id];
      const cause = registered && registered.error;
      if (cause) return failureOf(cause) || failure('P2010', String(cause.message || cause), {});
    }
    if (facing.meta && /^57P0/.test(facing.meta.code)) return failureOf(facing.meta);
  }
  return { errors };
}

// ------------------------------------------------------------------------------ from GraphQL to the JSON protocol ----
const ACTION = /^(findUniqueOrThrow|findUnique|findFirstOrThrow|findFirst|findMany|createManyAndReturn|createOne|createMany|updateOne|updateMany|deleteOne|deleteMany|upsertOne|aggregate|groupBy|executeRaw|queryRaw)(.*)$/;
const JSON_FILTER_WORDS = new Set(['path', 'mode', 'string_contains', 'string_starts_with', 'string_ends_with']);

function value(node) {
  switch (node.kind) {
    case 'NullValue': return null;
    case 'IntValue': { const n = Number(node.value); return Number.isSafeInteger(n) ? n : { $type: 'BigInt', value: node.value }; }
    case 'FloatValue': return Number(node.value);
    case 'ListValue': return node.values.map(value);
    case 'ObjectValue': return Object.fromEntries(node.fields.map(f => [f.name.value, value(f.value)]));
    default: return node.value;
  }
}
const argumentsOf = node => Object.fromEntries((node.arguments || []).map(a => [a.name.value, value(a.value)]));
const selectionOf = set => Object.fromEntries((set ? set.selections : []).map(field => [field.name.value,
  field.selectionSet || (field.arguments && field.arguments.length) ? { arguments: argumentsOf(field), selection: selectionOf(field.selectionSet) } : true]));

// In GraphQL a value of type Json is a string like any other; the JSON protocol wants it marked.
const markJson = v => typeof v === 'string' ? { $type: 'Json', value: v }
  : Array.isArray(v) ? v.map(markJson)
    : v && typeof v === 'object' && !v.$type ? Object.fromEntries(Object.entries(v).map(([k, x]) => [k, JSON_FILTER_WORDS.has(k) ? x : markJson(x)]))
      : v;
function mark(v, model) {
  if (Array.isArray(v)) return v.map(x => mark(x, model));
  if (!v || typeof v !== 'object' || v.$type) return v;
  return Object.fromEntries(Object.entries(v).map(([key, x]) => {
    const type = model[key];
    return [key, type === 'Json' ? markJson(x) : mark(x, models[type] || model)];
  }));
}

function translate(text) {
  const field = parse(text, { noLocation: true }).definitions[0].selectionSet.selections[0];
  const [, action, modelName] = ACTION.exec(field.name.value);
  const query = { action, query: { arguments: argumentsOf(field), selection: selectionOf(field.selectionSet) } };
  if (modelName) {
    query.modelName = modelName;
    query.query.arguments = mark(query.query.arguments, models[modelName] || {});
  }
  return { query, alias: (field.alias || field.name).value };
}

const plain = v => Array.isArray(v) ? v.map(plain)
  : v && typeof v === 'object' ? (v.$type ? v.value : Object.fromEntries(Object.entries(v).map(([k, x]) => [k, plain(x)])))
    : v;
const answer = (result, alias) => result.errors || !result.data ? explain(result) : { data: { [alias]: plain(Object.values(result.data)[0]) } };

// ------------------------------------------------------------------------------------------------------ raw queries ----
// Outside transactions they go to the driver: the WebAssembly engine knows fewer column types than the binary one.
const TYPES = { 16: 'bool', 17: 'bytes', 20: 'bigint', 21: 'int', 23: 'int', 26: 'bigint', 700: 'float', 701: 'double', 1700: 'decimal', 114: 'json', 3802: 'json', 1082: 'date', 1083: 'time', 1114: 'datetime', 1184: 'datetime', 2950: 'uuid', 1007: 'int-array', 1009: 'string-array', 1015: 'string-array', 1016: 'bigint-array' };
const cell = v => v instanceof Date ? v.toISOString() : Buffer.isBuffer(v) ? v.toString('base64') : Array.isArray(v) ? v.map(cell) : v;

async function queryRaw(query) {
  const parameters = JSON.parse(query.arguments.parameters || '[]').map(x => x && x.prisma__type ? x.prisma__value : x && typeof x === 'object' && !Array.isArray(x) ? JSON.stringify(x) : x);
  try {
    const result = await pool.query({ text: query.arguments.query, values: parameters, rowMode: 'array' });
    return { data: { result: { columns: result.fields.map(f => f.name), types: result.fields.map(f => TYPES[f.dataTypeID] || 'string'), rows: result.rows.map(row => row.map(cell)) } } };
  } catch (e) {
    return failureOf(e) || failure('P2010', `Raw query failed. Code: \`${e.code}\`. Message: \`${e.message}\``, { code: e.code, message: e.message });
  }
}

// -------------------------------------------------------------------------------------------------------- the server ----
async function handle(request, body) {
  const transaction = request.headers['x-transaction-id'];
  const [path] = request.url.split('?');
  if (path === '/status') return { status: 'ok' };
  if (path === '/metrics') return { counters: [], gauges: [], histograms: [] };
  if (path === '/transaction/start') return explain(JSON.parse(await engine.startTransaction(body, TRACE)));
  const end = /^\/transaction\/([^/]+)\/(commit|rollback)$/.exec(path);
  if (end) return explain(JSON.parse((await engine[`${end[2]}Transaction`](end[1], TRACE)) || '{}'));
  const message = JSON.parse(body);
  if (message.batch) {
    const parts = message.batch.map(x => translate(x.query));
    const batch = { batch: parts.map(x => x.query), transaction: message.transaction ? {} : undefined };
    const result = JSON.parse(await engine.query(JSON.stringify(batch), TRACE, transaction));
    return result.batchResult ? { batchResult: result.batchResult.map((x, i) => answer(x, parts[i].alias)) } : explain(result);
  }
  const { query, alias } = translate(message.query);
  if (query.action === 'queryRaw' && !transaction) return queryRaw(query.query);
  return answer(JSON.parse(await engine.query(JSON.stringify(query), TRACE, transaction)), alias);
}

const server = http.createServer((request, response) => {
  const chunks = [];
  request.on('data', chunk => chunks.push(chunk));
  request.on('end', async () => {
    let result;
    try {
      result = await handle(request, Buffer.concat(chunks).toString());
    } catch (e) {
      console.error(e);
      result = failureOf(e) || failure('P2009', String(e.message || e));
    }
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify(result));
  });
});
server.keepAliveTimeout = 0;

process.on('SIGINT', () => process.exit(0));
process.on('SIGTERM', () => process.exit(0));
process.on('uncaughtException', e => console.error(e));
const parent = process.ppid;
setInterval(() => { if (process.ppid !== parent) process.exit(0); }, 500).unref();

// Like the binary, the engine is not up before it has reached the database once.
(async () => {
  try {
    (await pool.connect()).release();
    await engine.connect(TRACE);
    const option = name => process.argv[process.argv.indexOf(name) + 1];
    server.on('error', e => { console.error(String(e)); process.exit(1); });
    server.listen(Number(option(process.argv.includes('-p') ? '-p' : '--port')), '127.0.0.1');
  } catch (e) {
    const { user_facing_error: told } = (failureOf(e) || failure('P1011', String(e.message || e))).errors[0];
    console.error(JSON.stringify(told));
    process.exit(1);
  }
})();
