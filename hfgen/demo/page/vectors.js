// Arithmetic with latents, and random numbers that a seed repeats.

export const add = (a, b, factor = 1) => a.map((value, i) => value + factor * b[i]);
export const scale = (a, factor) => a.map((value) => value * factor);
export const mix = (a, b, t) => a.map((value, i) => (1 - t) * value + t * b[i]);
export const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** Numbers between two vectors of normal noise that are themselves as long as normal noise is (Shoemake 1985). */
export function slerp(a, b, t) {
  const lengths = Math.sqrt(dot(a, a) * dot(b, b));
  const angle = Math.acos(clamp(lengths ? dot(a, b) / lengths : 1, -1, 1));
  const sine = Math.sin(angle);
  if (sine < 1e-4) return mix(a, b, t);
  return add(scale(a, Math.sin((1 - t) * angle) / sine), b, Math.sin(t * angle) / sine);
}

/** Uniform numbers in [0, 1) from a seed of 32 bits (mulberry32, by Tommy Ettinger). */
export function uniform(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Standard normal numbers, the same in every browser for the same seed (Box and Muller 1958). */
export function normal(seed, count) {
  const random = uniform(seed);
  const numbers = new Float32Array(count);
  for (let i = 0; i < count; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - random()));
    const angle = 2 * Math.PI * random();
    numbers[i] = radius * Math.cos(angle);
    if (i + 1 < count) numbers[i + 1] = radius * Math.sin(angle);
  }
  return numbers;
}

export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;

/** One Float32Array of several vectors. */
export function stacked(vectors) {
  const all = new Float32Array(vectors.length * vectors[0].length);
  vectors.forEach((vector, i) => all.set(vector, i * vector.length));
  return all;
}
