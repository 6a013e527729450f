// Opens a bundle in JavaScript: with onnxruntime-web in a browser, with onnxruntime-node in Node.
//
//   const model = await open(ort, readFile);       // readFile("manifest.json") -> Promise<Uint8Array>
//   await model.image(pixels, height, width)       // RGB or grey bytes -> {label, probability, top}
//   await model.text("a text", tokenizer)          // tokenizer: of @huggingface/tokenizers
//   await model.audio(samples, rate)               // floats in -1..1 -> {text}
//   await model.run({name: tensor})                // prepared inputs -> outputs by name
//   await model.golden(0)                          // repeat a recorded example -> {reproduced, maxDifference}

/** Opens the bundle that `read` reads the files of. `threads` is the number it was measured with unless given. */
export async function open(ort, read, { threads } = {}) {
  const manifest = JSON.parse(new TextDecoder().decode(await read("manifest.json")));
  if (manifest.format !== 1) throw new Error("manifest.json is not a bundle manifest of format 1");
  const model = await read("model.onnx");
  await checkHash(model, manifest.files["model.onnx"], "model.onnx");
  const session = await ort.InferenceSession.create(model, {
    executionProviders: ["cpu"],
    intraOpNumThreads: threads ?? manifest.measurement.threads ?? 0,
    interOpNumThreads: 1,
  });
  return new Bundle(ort, read, manifest, session);
}

class Bundle {
  constructor(ort, read, manifest, session) {
    Object.assign(this, { ort, read, manifest, session, rules: manifest.preprocessing });
  }

  /** Outputs by name for prepared inputs by name. */
  run(feeds) {
    return this.session.run(feeds);
  }

  /** What the model says of one image: bytes (or numbers) row by row, all channels of a pixel together. */
  async image(pixels, height, width) {
    const { kind, size, channels, layout, dtype, scale, mean, std, raw_max: highest } = this.rules;
    if (kind !== "image") throw new Error(`the model takes inputs of kind ${kind}, not images`);
    if (layout !== "NHWC" || scale !== 1 || mean || std) {
      throw new Error("the preprocessing of this bundle is not in its graph: prepare the inputs and call run()");
    }
    const [rows, columns] = size;
    const depth = channels === "RGB" ? 3 : 1;
    if (height !== rows || width !== columns) throw new Error(`the image must be ${rows} x ${columns}, not ${height} x ${width}`);
    if (pixels.length !== rows * columns * depth) throw new Error(`${rows * columns * depth} values are needed, not ${pixels.length}`);
    const values = dtype === "uint8" ? Uint8Array.from(pixels, (v) => Math.min(highest ?? 255, Math.max(0, Math.round(v)))) : Float32Array.from(pixels);
    const input = new this.ort.Tensor(dtype, values, [1, rows, columns, depth]);
    return this.describe(await this.run({ [this.manifest.inputs[0].name]: input }));
  }

  /** What the model says of a text. `tokenizer.encode(text).ids` are its numbers, special ones included. */
  async text(text, tokenizer) {
    const { kind, max_length: most, padding } = this.rules;
    if (kind !== "text") throw new Error(`the model takes inputs of kind ${kind}, not texts`);
    const fixed = this.manifest.inputs[0].shape.at(-1);
    const length = fixed === null ? most : Math.min(most, fixed);
    let ids = Array.from(tokenizer.encode(text).ids);
    if (ids.length > length) ids = [...ids.slice(0, length - 1), ids.at(-1)];
    const missing = Array(fixed === null ? 0 : fixed - ids.length).fill(0);
    const made = {
      input_ids: [...ids, ...missing.map(() => padding ?? 0)],
      attention_mask: [...ids.map(() => 1), ...missing],
      token_type_ids: [...ids.map(() => 0), ...missing],
    };
    const feeds = {};
    for (const { name, dtype } of this.manifest.inputs) {
      feeds[name] = new this.ort.Tensor(dtype, arrayOf(dtype, made[name]), [1, made[name].length]);
    }
    return this.describe(await this.run(feeds));
  }

  /** What is said in a recording: floats in -1..1 of one channel, at the model's rate. */
  async audio(samples, rate) {
    const { kind, sampling_rate: wanted, normalize, min_samples: least, decoding } = this.rules;
    if (kind !== "audio") throw new Error(`the model takes inputs of kind ${kind}, not recordings`);
    if (normalize) throw new Error("the preprocessing of this bundle is not in its graph: prepare the inputs and call run()");
    if (rate !== wanted) throw new Error(`the recording must have ${wanted} samples per second, not ${rate}`);
    const heard = Math.max(samples.length, least ?? 0);
    const length = this.manifest.inputs[0].shape.at(-1) ?? heard;
    if (heard > length) throw new Error(`the recording has ${heard} samples, and the model takes ${length}`);
    const values = new Float32Array(length);
    values.set(samples);
    const feeds = {};
    for (const { name, dtype } of this.manifest.inputs) {
      const row = name === "attention_mask" ? Array.from(values, (_, at) => (at < heard ? 1 : 0)) : values;
      feeds[name] = new this.ort.Tensor(dtype, arrayOf(dtype, row), [1, length]);
    }
    const scores = (await this.run(feeds))[this.manifest.outputs[0].name];
    return { text: decode(scores, this.manifest.labels, decoding), frames: scores.dims[1] };
  }

  /** Label and probabilities (softmax of the scores) of the first row of the first output. */
  describe(outputs, top = 5) {
    const scores = outputs[this.manifest.outputs[0].name];
    if (scores.dims.length !== 2) return { outputs };
    const row = Array.from(scores.data.slice(0, scores.dims[1]), Number);
    const highest = Math.max(...row);
    const powers = row.map((v) => Math.exp(v - highest));
    const total = powers.reduce((a, b) => a + b, 0);
    const names = this.manifest.labels ?? row.map((_, i) => String(i));
    const order = row.map((_, i) => i).sort((a, b) => powers[b] - powers[a] || a - b);
    const best = order.slice(0, top).map((i) => ({ label: names[i], probability: powers[i] / total }));
    return { label: names[order[0]], index: order[0], probability: best[0].probability, top: best };
  }

  /** Repeats recorded example `number`; an error where an output differs by more than the manifest's tolerance. */
  async golden(number) {
    const example = this.manifest.golden[number];
    if (!example) throw new Error(`there is no golden example ${number}; the bundle has ${this.manifest.golden.length}`);
    const feeds = {};
    for (const [name, path] of Object.entries(example.inputs)) {
      const { dtype, data, shape } = readNpy(await this.read(path));
      feeds[name] = new this.ort.Tensor(dtype, data, shape);
    }
    const outputs = await this.run(feeds);
    const { absolute, relative } = this.manifest.tolerance;
    let worst = 0;
    for (const [name, path] of Object.entries(example.outputs)) {
      const { data, shape } = readNpy(await this.read(path));
      const got = outputs[name];
      if (String(got.dims) !== String(shape)) throw new Error(`${path}: the model gives shape [${got.dims}], not [${shape}]`);
      data.forEach((expected, i) => {
        const difference = Math.abs(Number(got.data[i]) - Number(expected));
        worst = Math.max(worst, difference);
        if (!(difference <= absolute + relative * Math.abs(Number(expected)))) {
          throw new Error(`${path}: the model does not reproduce this output (difference ${difference})`);
        }
      });
    }
    return { golden: number, reproduced: true, maxDifference: worst };
  }
}

/** The best token of each frame, repeats taken once, the blank and `skip` left out. */
function decode({ data, dims }, labels, rules) {
  const [, frames, tokens] = dims;
  let before = -1;
  let text = "";
  for (let frame = 0; frame < frames; frame++) {
    let best = 0;
    for (let token = 1; token < tokens; token++) {
      if (data[frame * tokens + token] > data[frame * tokens + best]) best = token;
    }
    if (best !== before && best !== rules.blank && !(rules.skip ?? []).includes(labels[best])) {
      text += labels[best] === rules.word_delimiter ? " " : labels[best];
    }
    before = best;
  }
  return text.split(" ").filter(Boolean).join(" ");
}

const KINDS = {
  "<f4": ["float32", Float32Array],
  "<f8": ["float64", Float64Array],
  "<i8": ["int64", BigInt64Array],
  "<i4": ["int32", Int32Array],
  "|u1": ["uint8", Uint8Array],
  "|i1": ["int8", Int8Array],
  "|b1": ["bool", Uint8Array],
};

function arrayOf(dtype, values) {
  const kind = Object.values(KINDS).find(([name]) => name === dtype)?.[1];
  if (!kind) throw new Error(`inputs of type ${dtype} are not known here`);
  return dtype === "int64" ? BigInt64Array.from(values, BigInt) : kind.from(values);
}

/** The array in a .npy file of numpy. */
export function readNpy(bytes) {
  if (String.fromCharCode(...bytes.slice(1, 6)) !== "NUMPY") throw new Error("this is not a .npy file");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const wide = bytes[6] > 1;
  const start = (wide ? 12 : 10) + (wide ? view.getUint32(8, true) : view.getUint16(8, true));
  const header = new TextDecoder("latin1").decode(bytes.slice(wide ? 12 : 10, start));
  const [dtype, kind] = KINDS[/'descr': '([^']+)'/.exec(header)?.[1]] ?? [];
  if (!kind || !/'fortran_order': False/.test(header)) throw new Error(`an array of this kind is not read here: ${header.trim()}`);
  const shape = /'shape': \(([^)]*)\)/.exec(header)[1].split(",").filter((n) => n.trim()).map(Number);
  return { dtype, shape, data: new kind(bytes.slice(start).buffer) };
}

/** Floats in -1..1 of the first channels' mean, and the rate, of a WAV file with 16-bit numbers or floats. */
export function readWav(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const word = (at) => String.fromCharCode(...bytes.slice(at, at + 4));
  if (word(0) !== "RIFF" || word(8) !== "WAVE") throw new Error("this is not a WAV file");
  let shape;
  for (let at = 12; at + 8 <= bytes.length; ) {
    const [name, size] = [word(at), view.getUint32(at + 4, true)];
    if (name === "fmt ") {
      const tag = view.getUint16(at + 8, true);
      shape = {
        tag: tag === 0xfffe ? view.getUint16(at + 32, true) : tag,
        channels: view.getUint16(at + 10, true),
        rate: view.getUint32(at + 12, true),
        width: view.getUint16(at + 22, true) / 8,
      };
    } else if (name === "data" && shape) {
      const { tag, channels, rate, width } = shape;
      const value = { "1,2": (p) => view.getInt16(p, true) / 32768, "3,4": (p) => view.getFloat32(p, true) }[[tag, width]];
      if (!value) throw new Error("WAV files of this kind are not read here: convert it to 16 bits");
      const body = Math.min(size, bytes.length - at - 8);
      const samples = new Float32Array(Math.floor(body / (channels * width)));
      samples.forEach((_, i) => {
        let sum = 0;
        for (let c = 0; c < channels; c++) sum += value(at + 8 + (i * channels + c) * width);
        samples[i] = sum / channels;
      });
      return { samples, rate };
    }
    at += 8 + size + (size % 2);
  }
  throw new Error("this WAV file holds no sound");
}

async function checkHash(bytes, expected, name) {
  if (!globalThis.crypto?.subtle) return; // browsers have it on https and localhost alone
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== expected) throw new Error(`${name} is not the file that manifest.json describes`);
}
