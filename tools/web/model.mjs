import * as ort from "onnxruntime-web";

/** Fetch an exported folder: its manifest, and a session of its model. */
export async function open(base, options = {}) {
  const extra = { session: { disable_quant_qdq: "1" } }; // weights behind DequantizeLinear become floats, once
  const get = async (file) => {
    const answer = await fetch(`${base}/${file}`);
    if (!answer.ok) throw new Error(`${base}/${file}: ${answer.status}`);
    return answer;
  };
  const bytes = async (file) => new Uint8Array(await (await get(file)).arrayBuffer());
  const web = await (await get("web.json")).json();
  const externalData = []; // by name: a page has no folder in which the model could look for them
  for (const { path, file } of web.external_data) externalData.push({ path, data: await bytes(file) });
  return { web, session: await ort.InferenceSession.create(await bytes(web.model), { extra, ...options, externalData }) };
}

/** What a decoder knows before the first token: keys and values of length 0. */
export function emptyCache({ web }, batch = 1) {
  const past = Object.entries(web.inputs).filter(([name]) => name.startsWith("past_key_values."));
  const none = { float32: new Float32Array(0), float16: new Uint16Array(0) };
  return Object.fromEntries(
    past.map(([name, { type, shape }]) => [name, new ort.Tensor(type, none[type], [batch, shape[1], 0, shape[3]])]),
  );
}

/** What a decoder knows after a step. */
export function nextCache(outputs) {
  const present = Object.entries(outputs).filter(([name]) => name.startsWith("present."));
  return Object.fromEntries(present.map(([name, tensor]) => [name.replace("present", "past_key_values"), tensor]));
}

/** The likeliest tokens after those of `ids`, at most `count`, up to the end of the text. */
export async function* tokens(model, ids, count) {
  const long = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  let [known, next, cache] = [0, [...ids], emptyCache(model)];
  for (let made = 0; made < count; made++) {
    const end = known + next.length;
    const feeds = { input_ids: long(next), attention_mask: long(Array(end).fill(1)), ...cache };
    if ("position_ids" in model.web.inputs) feeds.position_ids = long(next.map((_, i) => known + i));
    const outputs = await model.session.run(feeds);
    const last = numbers(outputs.logits).slice(-outputs.logits.dims[2]);
    [known, next, cache] = [end, [last.reduce((best, x, i) => (x > last[best] ? i : best), 0)], nextCache(outputs)];
    if (model.web.eos_token_ids.includes(next[0])) return;
    yield next[0];
  }
}

/** The numbers of a tensor: where JavaScript has no Float16Array, halves come as integers of 16 bits. */
export function numbers({ type, data }) {
  if (type !== "float16" || !(data instanceof Uint16Array)) return Array.from(data, Number);
  return Array.from(data, (h) => {
    const [sign, exponent, rest] = [h & 0x8000 ? -1 : 1, (h >> 10) & 31, h & 1023];
    if (exponent === 31) return rest ? NaN : sign * Infinity;
    return sign * (exponent ? (1024 + rest) * 2 ** (exponent - 25) : rest * 2 ** -24);
  });
}
