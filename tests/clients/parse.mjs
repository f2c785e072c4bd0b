// Parses GGUF files with @huggingface/gguf and hyllama, and renders their chat templates with @huggingface/jinja.
// stdin: {"files": [path, ...]}; stdout: {path: {client: number of tensors, or the error}}.
import fs from "node:fs";
import { gguf } from "@huggingface/gguf";
import { ggufMetadata } from "hyllama";
import { Template } from "@huggingface/jinja";

const { files } = JSON.parse(fs.readFileSync(0, "utf-8"));
const found = {};
const tried = async (work) => {
  try {
    return await work();
  } catch (error) {
    return `${error}`;
  }
};
for (const path of files) {
  const parsed = await tried(() => gguf(path, { allowLocalFile: true }));
  found[path] = { "@huggingface/gguf": typeof parsed === "string" ? parsed : parsed.tensorInfos.length };
  found[path].hyllama = await tried(() => {
    const { buffer, byteOffset, byteLength } = fs.readFileSync(path);
    return ggufMetadata(buffer.slice(byteOffset, byteOffset + byteLength)).tensorInfos.length;
  });
  const template = parsed.metadata?.["tokenizer.chat_template"];
  if (template) {
    found[path]["@huggingface/jinja"] = await tried(() =>
      new Template(template).render({
        messages: [{ role: "user", content: "Hello" }],
        add_generation_prompt: true,
        bos_token: "<s>",
        eos_token: "</s>",
      }),
    );
  }
}
console.log(JSON.stringify(found));
