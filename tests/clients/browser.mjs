// Runs models with wllama in a headless Chromium.
// stdin: {"chromium": path, "root": folder, "library": folder, "models": {name: [file, ...]}, "prompt": "..."};
// the last line of stdout: {name: the greedy continuation, or the error}.
import fs from "node:fs";
import http from "node:http";
import path from "node:path";
import { chromium } from "playwright-core";

const MINUTES = 10; // for each model
const asked = JSON.parse(fs.readFileSync(0, "utf-8"));
const types = { ".js": "text/javascript", ".wasm": "application/wasm", ".html": "text/html" };
const server = http.createServer((request, response) => {
  const [, where, ...rest] = decodeURIComponent(new URL(request.url, "http://x").pathname).split("/");
  const folder = { library: asked.library, files: asked.root }[where];
  // Threads need memory that is shared, which browsers give to pages that are isolated.
  const headers = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Content-Type": types[path.extname(request.url)] ?? "application/octet-stream",
  };
  if (!folder) {
    response.writeHead(200, { ...headers, "Content-Type": "text/html" });
    response.end("<!doctype html><title>wllama</title>");
    return;
  }
  const file = path.join(folder, ...rest);
  if (!fs.existsSync(file)) {
    response.writeHead(404).end();
    return;
  }
  response.writeHead(200, { ...headers, "Content-Length": fs.statSync(file).size });
  if (request.method === "HEAD") response.end();
  else fs.createReadStream(file).pipe(response);
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const address = `http://127.0.0.1:${server.address().port}`;
const browser = await chromium.launch({ executablePath: asked.chromium, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const found = {};
for (const [name, files] of Object.entries(asked.models)) {
  const page = await browser.newPage();
  await page.goto(address);
  try {
    const late = new Promise((_, fail) => {
      setTimeout(() => fail(new Error(`no answer within ${MINUTES} minutes`)), MINUTES * 60000).unref();
    });
    const answer = page.evaluate(
      async ({ files, prompt }) => {
        const { Wllama } = await import("/library/index.js");
        const wllama = new Wllama({ default: "/library/wasm/wllama.wasm" }, { suppressNativeLog: true });
        const blobs = await Promise.all(
          files.map(async (file) => {
            const blob = await (await fetch(`/files/${file}`)).blob();
            return new File([blob], file.split("/").pop());
          }),
        );
        await wllama.loadModel(blobs, { n_ctx: 512, n_threads: 2 });
        const done = await wllama.createCompletion({ prompt, max_tokens: 16, temperature: 0, stream: false });
        await wllama.exit();
        return done.choices[0].text;
      },
      { files, prompt: asked.prompt },
    );
    found[name] = await Promise.race([answer, late]);
  } catch (error) {
    found[name] = `error: ${error}`.split("\n")[0];
  }
  await page.close();
}
await browser.close();
server.close();
process.stdout.write(`${JSON.stringify(found)}\n`, () => process.exit(0));
