// Print the logits of token ids in the model of a folder, run by transformers.js: FOLDER IDS, with NODE_PATH to it.
const path = require("node:path");
const { AutoModelForCausalLM, Tensor, env } = require("@huggingface/transformers");

const [folder, text] = process.argv.slice(2);
const rows = JSON.parse(text);
const shape = [rows.length, rows[0].length];

function tensor(numbers) {
  return new Tensor("int64", BigInt64Array.from(numbers, BigInt), shape);
}

async function main() {
  env.allowRemoteModels = false;
  env.localModelPath = path.dirname(path.resolve(folder));
  const model = await AutoModelForCausalLM.from_pretrained(path.basename(path.resolve(folder)), { dtype: "fp32" });
  const ids = rows.flat();
  const { logits } = await model({ input_ids: tensor(ids), attention_mask: tensor(ids.map(() => 1)) });
  console.log(JSON.stringify(Array.from(logits.data)));
}

main().catch((fault) => {
  console.error(fault.message ?? fault);
  process.exitCode = 1;
});
