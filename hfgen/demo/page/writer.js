// A GPT that writes token by token. Keys and values of what was read are kept, so that a step reads one token only.

const LOWEST = 1e-6; // a temperature below which the likeliest token is taken

export class Writer {
  /** @param about context, layers, heads, head_dim, suppressed (ids that are never written) */
  constructor(network, about) {
    this.network = network;
    this.about = about;
    this.forget();
  }

  forget() {
    const { layers, heads, head_dim: size } = this.about;
    this.read = [];
    this.logits = null;
    this.past = {};
    for (let i = 0; i < layers; i++) {
      for (const kind of ["key", "value"]) {
        this.past[`past_key_values.${i}.${kind}`] = this.network.tensor(new Float32Array(), [1, heads, 0, size]);
      }
    }
  }

  /** Reads tokens. Returns the logits after each of them; where the context is full, its older half is forgotten, as by the `sample` of the model. */
  async feed(ids) {
    const { context } = this.about;
    if (this.read.length + ids.length >= context) {
      const kept = [...this.read, ...ids].slice(-Math.max(1, Math.floor(context / 2)));
      this.forget();
      ids = kept;
    }
    const total = this.read.length + ids.length;
    const outputs = await this.network.run({
      input_ids: this.network.tensor(ids, [1, ids.length]),
      attention_mask: this.network.tensor(Array(total).fill(1), [1, total]),
      position_ids: this.network.tensor(ids.map((_, i) => this.read.length + i), [1, ids.length]),
      ...this.past,
    });
    for (const name of Object.keys(this.past)) this.past[name] = outputs[name.replace("past_key_values", "present")];
    this.read = [...this.read, ...ids];
    const size = outputs.logits.dims.at(-1);
    const rows = outputs.logits.data.length / size;
    const logits = Array.from({ length: rows }, (_, i) => outputs.logits.data.subarray(i * size, (i + 1) * size));
    this.logits = logits.at(-1);
    return logits;
  }

  /** Probabilities of the next token at a temperature; 0 leaves the likeliest one. */
  probabilities(temperature, logits = this.logits) {
    const allowed = Float64Array.from(logits);
    for (const id of this.about.suppressed) allowed[id] = -Infinity;
    const best = allowed.indexOf(allowed.reduce((a, b) => Math.max(a, b)));
    if (temperature < LOWEST) return allowed.map((_, id) => (id === best ? 1 : 0));
    const powers = allowed.map((value) => Math.exp((value - allowed[best]) / temperature));
    const sum = powers.reduce((a, b) => a + b);
    return powers.map((power) => power / sum);
  }

  /** A token drawn at a temperature. */
  draw(temperature) {
    const probabilities = this.probabilities(temperature);
    let left = Math.random();
    for (const [id, probability] of probabilities.entries()) {
      left -= probability;
      if (left < 0 && probability > 0) return id;
    }
    return probabilities.indexOf(probabilities.reduce((a, b) => Math.max(a, b)));
  }

  /** How surprising a token is to the model itself, in bits. */
  surprise(id, logits = this.logits) {
    return -Math.log2(Math.max(1e-12, this.probabilities(1, logits)[id]));
  }
}
