// ONNX networks in onnxruntime-web: numbers in, numbers out.

import { fetchBytes, Missing } from "./loading.js";

const size = (shape) => shape.reduce((product, side) => product * side, 1);

/** Loads onnxruntime-web, on one thread: small networks gain nothing from more, and threads would need special headers. */
export async function openRuntime({ script, wasm }, loading) {
  const binary = await fetchBytes(wasm, loading, "the runtime");
  let ort;
  try {
    ort = await import(new URL(script, document.baseURI).href);
  } catch {
    throw new Missing(`${script} is missing: it is the runtime, onnxruntime-web. Write the folder again with hfgen demo.`);
  }
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = binary.buffer;
  ort.env.logLevel = "error";
  return {
    async open(bytes, name) {
      const options = { executionProviders: ["wasm"], graphOptimizationLevel: "all" };
      try {
        return new Network(ort, await ort.InferenceSession.create(bytes, options));
      } catch (error) {
        throw new Missing(`The ${name} could not be opened: ${error.message ?? error}`);
      }
    },
  };
}

class Network {
  constructor(ort, session) {
    this.ort = ort;
    this.session = session;
    this.queue = Promise.resolve();
  }

  get inputs() {
    return this.session.inputNames;
  }

  /** A tensor of float32, or of int64 for whole numbers in an ordinary array. */
  tensor(values, shape) {
    if (size(shape) !== values.length) throw new Error(`${values.length} numbers do not fit the shape ${shape.join(" × ")}`);
    if (values instanceof Float32Array) return new this.ort.Tensor("float32", values, shape);
    return new this.ort.Tensor("int64", BigInt64Array.from(values, (value) => BigInt(value)), shape);
  }

  /** Runs the network, after earlier runs: a session runs once at a time. Inputs that it does not have are left out. */
  run(inputs) {
    const feeds = Object.fromEntries(Object.entries(inputs).filter(([name, value]) => value && this.inputs.includes(name)));
    const result = this.queue.then(() => this.session.run(feeds));
    this.queue = result.catch(() => {});
    return result;
  }

  /** The first output, whatever its name. */
  async first(inputs) {
    return (await this.run(inputs))[this.session.outputNames[0]];
  }
}
