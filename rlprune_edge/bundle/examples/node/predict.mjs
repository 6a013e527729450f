// Runs a bundle in Node:  node predict.mjs BUNDLE INPUT.npy | SPEECH.wav | --text "a text" | --golden N
// Prints one JSON document. An image is a .npy array of raw values here; a browser decodes image files, see ../web.
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import * as ort from "onnxruntime-node";
import { open, readNpy, readWav } from "./bundle.mjs";

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { text: { type: "string" }, golden: { type: "string" } },
});
const [folder, file] = positionals;
if (!folder || [file, values.text, values.golden].filter((given) => given !== undefined).length !== 1) {
  console.error('usage: node predict.mjs BUNDLE INPUT.npy | SPEECH.wav | --text "a text" | --golden N');
  process.exit(2);
}
try {
  const read = async (name) => new Uint8Array(await readFile(join(folder, name)));
  const model = await open(ort, read);
  console.log(JSON.stringify(await answer(model, read), null, 1));
} catch (error) {
  console.error(error.message);
  process.exit(2);
}

async function answer(model, read) {
  if (values.golden !== undefined) return model.golden(Number(values.golden));
  if (values.text !== undefined) return model.text(values.text, await tokenizer(model, read));
  const bytes = new Uint8Array(await readFile(file));
  if (file.endsWith(".wav")) {
    const { samples, rate } = readWav(bytes);
    return model.audio(samples, rate);
  }
  const { data, shape } = readNpy(bytes);
  return model.rules.kind === "audio" ? model.audio(data, model.rules.sampling_rate) : model.image(data, shape[0], shape[1]);
}

async function tokenizer(model, read) {
  if (model.rules.kind !== "text") return undefined; // which is what text() will say
  const { Tokenizer } = await import("@huggingface/tokenizers");
  const content = await read(model.rules.tokenizer);
  return new Tokenizer(JSON.parse(new TextDecoder().decode(content)), {});
}
