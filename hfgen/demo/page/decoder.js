// From latents to pictures: a batch at once, or the newest of many as fast as the screen shows them.

import { stacked } from "./vectors.js";

const SHOWN = 30; // pictures over which times are averaged

/** The network that makes pictures of latents; `latents` is the name of its input. */
export class Decoder {
  constructor(network, shape, input = "latents") {
    this.network = network;
    this.shape = shape;
    this.input = input;
  }

  /** Pixels of a list of latents, with a class each, or one for all. */
  async decode(latents, classes = null) {
    const count = latents.length;
    const labels = classes === null ? null : latents.map((_, i) => (Array.isArray(classes) ? classes[i] : classes));
    const { data } = await this.network.first({
      [this.input]: this.network.tensor(stacked(latents), [count, ...this.shape]),
      labels: labels && this.network.tensor(labels, [count]),
    });
    return data;
  }
}

/** Shows the newest latents once a frame of the screen; those that come while a picture is made replace each other. */
export class Live {
  constructor(decoder, onPicture, timing) {
    this.decoder = decoder;
    this.onPicture = onPicture;
    this.timing = timing;
    this.pending = null;
    this.running = false;
    this.spent = [];
    this.shown = 0;
  }

  show(latents, label) {
    this.pending = { latents, label };
    if (!this.running) this.run();
  }

  async run() {
    this.running = true;
    while (this.pending) {
      const { latents, label } = this.pending;
      this.pending = null;
      const start = performance.now();
      const pixels = await this.decoder.decode([latents], label);
      this.onPicture(pixels, latents);
      this.measure(performance.now() - start);
      await new Promise((resolve) => (document.hidden ? setTimeout(resolve, 16) : requestAnimationFrame(resolve)));
    }
    this.running = false;
  }

  measure(milliseconds) {
    this.shown += 1;
    this.timing.dataset.shown = this.shown;
    if (this.shown === 1) return; // the first picture takes longer: the network has never run before
    this.spent = [...this.spent.slice(1 - SHOWN), milliseconds];
    const mean = this.spent.reduce((sum, value) => sum + value, 0) / this.spent.length;
    this.timing.textContent = `${mean < 10 ? mean.toFixed(1) : Math.round(mean)} ms a picture`;
    this.timing.dataset.milliseconds = mean;
  }
}
