// The stored pictures by their latents: nearest ones, and samples like them.

import { normal } from "./vectors.js";

export class StoredLatents {
  constructor(bytes, dimension, center) {
    this.numbers = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
    this.dimension = dimension;
    this.count = this.numbers.length / dimension;
    this.center = center;
  }

  at(index) {
    return this.numbers.slice(index * this.dimension, (index + 1) * this.dimension);
  }

  /** Indices of the pictures whose latents are nearest. */
  nearest(latents, count) {
    const distances = Array.from({ length: this.count }, (_, i) => {
      let sum = 0;
      for (let k = 0; k < this.dimension; k++) sum += (this.numbers[i * this.dimension + k] - latents[k]) ** 2;
      return [sum, i];
    });
    return distances.sort((a, b) => a[0] - b[0]).slice(0, count).map(([, i]) => i);
  }

  /** Latents from the normal distribution with the mean and covariance of the stored ones: where there is no prior. */
  draw(seed, temperature) {
    const weights = normal(seed, this.count);
    const latents = Float32Array.from(this.center);
    const factor = temperature / Math.sqrt(this.count);
    for (let i = 0; i < this.count; i++) {
      for (let k = 0; k < this.dimension; k++) latents[k] += factor * weights[i] * (this.numbers[i * this.dimension + k] - this.center[k]);
    }
    return latents;
  }
}
