// Opens pages in a headless Chromium.
// stdin: {"chromium": path, "pages": [file, ...]}; the last line of stdout: {file: {faults, words, drawings, wide}}, where faults
// are errors of scripts, and what could not be loaded or was loaded from elsewhere; wide: pixels beyond the window.
import fs from "node:fs";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const asked = JSON.parse(fs.readFileSync(0, "utf-8"));
const browser = await chromium.launch({ executablePath: asked.chromium, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const found = {};
for (const file of asked.pages) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  const faults = [];
  page.on("pageerror", (error) => faults.push(`script: ${error.message}`));
  page.on("console", (message) => message.type() === "error" && faults.push(`console: ${message.text()}`));
  page.on("requestfailed", (request) => faults.push(`not loaded: ${request.url()}`));
  page.on("request", (request) => /^(file|data|blob):/.test(request.url()) || faults.push(`elsewhere: ${request.url()}`));
  try {
    await page.goto(pathToFileURL(file).href, { waitUntil: "load", timeout: 120000 });
    const seen = await page.evaluate(() => ({
      words: document.body.innerText.split(/\s+/).filter(Boolean).length,
      drawings: [...document.querySelectorAll("svg")].filter((each) => each.getBoundingClientRect().width > 200).length,
      wide: document.documentElement.scrollWidth - window.innerWidth,
    }));
    found[file] = { faults, ...seen };
  } catch (error) {
    found[file] = { faults: [`${error}`.split("\n")[0]], words: 0, drawings: 0, wide: 0 };
  }
  await page.close();
}
await browser.close();
process.stdout.write(`${JSON.stringify(found)}\n`, () => process.exit(0));
