// Run a folder of target web in onnxruntime-web, fetched as a page fetches it, and compare with the cases stored in it.
import { createReadStream } from "node:fs";
import { stat } from "node:fs/promises";
import { createServer } from "node:http";
import { join, normalize, resolve } from "node:path";

import * as ort from "onnxruntime-web";

import { emptyCache, nextCache, numbers, open, tokens } from "./model.mjs";

class Difference extends Error {}

function serve(folder) {
  const server = createServer(async (request, answer) => {
    const path = join(folder, normalize(decodeURIComponent(new URL(request.url, "http://x").pathname)));
    const found = await stat(path).catch(() => null);
    if (!found?.isFile()) return answer.writeHead(404).end();
    answer.writeHead(200, { "content-length": found.size });
    createReadStream(path).pipe(answer);
  });
  return new Promise((done) => server.listen(0, "127.0.0.1", () => done(server)));
}

/** An input of a stored case: integers are written out, other numbers are computed from their place. */
function tensor({ shape, data, wave }, type) {
  const size = shape.reduce((a, b) => a * b, 1);
  if (data) return new ort.Tensor(type, integers(type, data), shape);
  const values = Float32Array.from({ length: size }, (_, i) => (((i + wave) * 7919) % 10007) / 5003.5 - 1);
  return new ort.Tensor(type, type === "float16" ? Uint16Array.from(values, half) : values, shape);
}

function integers(type, data) {
  const kinds = { int64: BigInt64Array, int32: Int32Array, bool: Uint8Array };
  if (!(type in kinds)) throw new Error(`an input of type ${type} is not known here`);
  return type === "int64" ? BigInt64Array.from(data, BigInt) : kinds[type].from(data);
}

/** The bits of the half that is nearest to a number from -1 to 1, the even one of two. */
function half(x) {
  const [sign, size] = [x < 0 ? 0x8000 : 0, Math.abs(x)];
  if (size < 2 ** -14) return sign | even(size * 2 ** 24);
  const exponent = Math.floor(Math.log2(size));
  return sign + ((exponent + 15) << 10) + even((size / 2 ** exponent - 1) * 1024);
}

function even(x) {
  const low = Math.floor(x);
  return x - low > 0.5 || (x - low === 0.5 && low % 2) ? low + 1 : low;
}

async function compare(model, { name, steps }, bound) {
  let cache = null;
  let worst = 0;
  for (const [number, { inputs, outputs }] of steps.entries()) {
    const feeds = {};
    for (const [key, entry] of Object.entries(inputs)) feeds[key] = tensor(entry, model.web.inputs[key].type);
    const batch = Object.values(inputs)[0].shape[0];
    const found = await model.session.run({ ...(cache ?? emptyCache(model, batch)), ...feeds });
    for (const [output, wanted] of Object.entries(outputs)) {
      worst = Math.max(worst, difference(`${name}, step ${number}: ${output}`, found[output], wanted, bound));
    }
    cache = nextCache(found);
  }
  return worst;
}

function difference(what, found, { shape, scale, at, values, argmax }, bound) {
  if (String(found.dims) !== String(shape)) throw new Difference(`${what} has shape ${found.dims}, not ${shape}`);
  const all = numbers(found);
  const errors = at.map((place, i) => Math.abs(all[place] - values[i]) / Math.max(scale, Math.abs(values[i])));
  const error = Math.max(0, ...errors);
  if (!(error <= bound)) throw new Difference(`${what} differs by ${error.toExponential(1)}, allowed are ${bound}`);
  const width = shape.at(-1);
  for (const [row, best] of argmax) {
    const numbersOfRow = all.slice(row * width, (row + 1) * width);
    const likeliest = numbersOfRow.indexOf(numbersOfRow.reduce((a, b) => Math.max(a, b)));
    if (likeliest !== best) throw new Difference(`${what} prefers ${likeliest} in row ${row}, not ${best}`);
  }
  return error;
}

/** The tokens must be those of Python as far as they were decided; how many agree after that is told. */
async function greedy(model, { prompt, tokens: wanted, decided }) {
  const endless = { ...model, web: { ...model.web, eos_token_ids: [] } };
  const found = [];
  const times = [performance.now()];
  for await (const token of tokens(endless, prompt, wanted.length)) {
    found.push(token);
    times.push(performance.now());
  }
  const same = [...wanted, null].findIndex((token, i) => token !== found[i]);
  if (same < decided) throw new Difference(`greedy tokens are ${found}, not ${wanted.slice(0, decided)}`);
  const speed = (1000 * (found.length - 1)) / (times.at(-1) - times[1]);
  console.log(`greedy: ${same < 0 ? wanted.length : same} of ${wanted.length} tokens equal, ${speed.toFixed(1)} tokens/s`);
}

async function main(folder) {
  const server = await serve(resolve(folder));
  try {
    const base = `http://127.0.0.1:${server.address().port}`;
    const cases = await (await fetch(`${base}/cases.json`)).json();
    const start = performance.now();
    const model = await open(base, { executionProviders: ["wasm"] });
    const size = [model.web, ...model.web.external_data].reduce((sum, file) => sum + file.bytes, 0);
    console.log(`${model.web.model}: ${(size / 1e6).toFixed(1)} MB, open in ${Math.round(performance.now() - start)} ms`);
    for (const one of cases.cases) {
      const worst = await compare(model, one, cases.bound);
      console.log(`${one.name}: within ${worst.toExponential(1)}, allowed are ${cases.bound}`);
    }
    if (cases.greedy) await greedy(model, cases.greedy);
  } finally {
    server.close();
    server.closeAllConnections();
  }
}

ort.env.wasm.numThreads = Number(process.env.OMP_NUM_THREADS ?? 1);
try {
  await main(process.argv[2]);
} catch (fault) {
  console.error(`${process.argv[2]}: ${fault instanceof Difference ? fault.message : (fault.stack ?? fault)}`);
  process.exitCode = 1;
}
