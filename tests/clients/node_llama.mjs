// Loads models with node-llama-cpp: token ids of texts, and a greedy continuation.
// stdin: {"files": [path, ...], "texts": [...], "prompt": "..."}; the last line of stdout: {path: {tokens, answer}}.
import fs from "node:fs";
import { getLlama, LlamaCompletion } from "node-llama-cpp";

const { files, texts, prompt } = JSON.parse(fs.readFileSync(0, "utf-8"));
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error" });
const found = {};
for (const path of files) {
  const model = await llama.loadModel({ modelPath: path, gpuLayers: 0 });
  const context = await model.createContext({ contextSize: 512, threads: 2 });
  const completion = new LlamaCompletion({ contextSequence: context.getSequence() });
  const answer = await completion.generateCompletion(prompt, { maxTokens: 16, temperature: 0 });
  found[path] = { tokens: texts.map((text) => model.tokenize(text, true)), answer };
  await context.dispose();
  await model.dispose();
}
// The library keeps threads, so that the process has to be ended; not before the answer has left it.
process.stdout.write(`${JSON.stringify(found)}\n`, () => process.exit(0));
