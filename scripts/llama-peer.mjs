// One measurement of llama.cpp on a GGUF file, through the prebuilt addon of the npm package @node-llama-cpp/linux-x64.
//
//   node llama-peer.mjs PACKAGE MODEL THREADS CONTEXT < {"prompts": [text, ...], "tokens": N, "length": N}
//
// Prints one line of JSON: seconds to load, and for each prompt (cut to `length` tokens where that is given) the seconds of
// prefill and of N greedy tokens.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import path from "node:path";

const [folder, model, threads, context] = process.argv.slice(2);
const job = JSON.parse(readFileSync(0, "utf8"));
const binaries = path.join(folder, "bins", "linux-x64");
const llama = createRequire(import.meta.url)(path.join(binaries, "llama-addon.node"));
const seconds = (since) => (performance.now() - since) / 1000;

const start = performance.now();
llama.setLogger(() => {});
llama.loadBackends();
llama.loadBackends(binaries);
await llama.init();
const loaded = new llama.AddonModel(model, { addonExports: llama, gpuLayers: 0, useMmap: true });
await loaded.init();
const size = Number(context);
const options = { contextSize: size, batchSize: size, sequences: 1, threads: Number(threads), flashAttention: "auto" };
const cx = new llama.AddonContext(loaded, options);
await cx.init();
cx.setThreads(Number(threads));
const greedy = new llama.AddonSampler(loaded);
greedy.applyConfig({ temperature: 0 });
const load = seconds(start);

const runs = [];
for (const text of job.prompts) {
  const prompt = loaded.tokenize(text, false).slice(0, job.length || undefined);
  cx.removeTokenCellsFromSequence(0, 0, -1);
  const step = async (tokens, at) => {
    cx.initBatch(tokens.length);
    const [logits] = cx.addToBatch(0, at, Uint32Array.from(tokens), Uint32Array.from([tokens.length - 1]));
    await cx.decodeBatch();
    return await cx.sampleToken(logits, greedy);
  };
  let since = performance.now();
  let token = await step(prompt, 0);
  const prefill = seconds(since);
  const tokens = [token];
  since = performance.now();
  while (tokens.length < job.tokens) {
    token = await step([token], prompt.length + tokens.length - 1);
    tokens.push(token);
  }
  runs.push({ prompt_tokens: prompt.length, prefill_s: prefill, decode_s: seconds(since), tokens });
}
console.log(JSON.stringify({ load_s: load, system: llama.systemInfo(), rss: process.resourceUsage().maxRSS * 1024, runs }));
process.exit(0);
