// The view of a model that only draws: a GAN, or a Ladder VAE. A picture is a seed, a place on the walk that starts
// there, a truncation, a class, and shifts along directions: all of it stands in the address.

import { readAddress, writeAddress } from "./address.js";
import { chooseClass, Directions, slider } from "./controls.js";
import { Decoder, Live } from "./decoder.js";
import { draw, thumb } from "./pictures.js";
import { add, clamp, normal, randomSeed, scale, slerp } from "./vectors.js";

const SAMPLES = 24;
const SECONDS = 3; // from one picture of the walk to the next
const MOST_SEED = 2 ** 32 - 1;
const byId = (id) => document.getElementById(id);

export async function showGenerator({ about, networks }) {
  await new GeneratorView(about, networks.generator).show();
}

class GeneratorView {
  constructor(about, network) {
    this.about = about;
    this.size = about.image;
    this.dimension = about.latent_shape.reduce((product, side) => product * side, 1);
    this.decoder = new Decoder(network, about.latent_shape, network.inputs.find((name) => name !== "labels"));
    this.live = new Live(this.decoder, (pixels) => draw(byId("picture"), pixels, this.size), byId("timing"));
    this.noise = new Map(); // seed -> latents before truncation
    this.walkEnd = byId("walk").max * 1;
    this.readState();
  }

  readState(address) {
    const given = readAddress(address);
    const number = (name, low, high, standard) => {
      const value = Number.parseFloat(given[name]);
      return Number.isFinite(value) ? clamp(value, low, high) : standard;
    };
    const classes = this.about.conditional ? this.about.classes.length : 0;
    this.seed = Math.floor(number("seed", 0, MOST_SEED, 1));
    this.walk = number("walk", 0, this.walkEnd, 0);
    this.truncation = number("truncation", 0, 1.5, 1);
    this.label = classes ? Math.floor(number("class", 0, classes - 1, 0)) : null;
    const shifts = (given.shift ?? "").split(",").map(Number);
    this.shifts = this.about.directions.directions.map((_, k) => (Number.isFinite(shifts[k]) ? clamp(shifts[k], -9, 9) : 0));
  }

  async show() {
    this.directions = new Directions(
      byId("directions"),
      { ...this.about.directions, center: new Float32Array(this.dimension), size: this.size, decoder: this.decoder },
      (latents) => this.shiftTo(latents),
    );
    byId("directions-section").hidden = !this.about.directions.directions.length;
    if (this.label !== null) {
      byId("classes-part").hidden = false;
      this.markClass = chooseClass(byId("classes"), this.about.classes, this.label, (index) => {
        this.label = index;
        this.changed();
      });
    }
    byId("truncation-name").textContent = this.about.truncation;
    byId("truncation").value = this.truncation;
    this.markTruncation = slider(byId("truncation"), byId("truncation-value"), (value) => value.toFixed(2), (value) => {
      this.truncation = value;
      this.changed();
    });
    byId("truncation").addEventListener("change", () => this.drawSamples());
    byId("walk").value = this.walk;
    this.markWalk = slider(byId("walk"), byId("walk-value"), (value) => this.onWalk(value), (value) => {
      this.walk = value;
      this.changed();
    });
    this.connect();
    this.showSamples();
    this.changed();
    await this.drawSamples();
  }

  connect() {
    byId("play").addEventListener("click", () => (this.playing ? this.pause() : this.play()));
    byId("random").addEventListener("click", () => this.start(randomSeed(), this.label, true));
    byId("seed").addEventListener("change", () => {
      const seed = Math.floor(clamp(byId("seed").valueAsNumber || 0, 0, MOST_SEED));
      this.start(seed, this.label, true);
    });
    byId("center").addEventListener("click", () => {
      this.shifts.fill(0);
      this.changed();
    });
    byId("share").addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(location.href);
        byId("shared").textContent = "Copied. Whoever opens the link sees this picture.";
      } catch {
        byId("shared").textContent = "The browser does not let this page copy. The address above is the link.";
      }
    });
    addEventListener("hashchange", (event) => {
      this.pause();
      this.readState(event.newURL);
      byId("truncation").value = this.truncation;
      byId("walk").value = this.walk;
      this.markTruncation();
      this.markClass?.(this.label);
      this.first = this.seed;
      this.changed();
      this.drawSamples();
    });
  }

  onWalk(value) {
    const [from, share] = [this.seed + Math.floor(value), value % 1];
    return share < 0.005 ? `seed ${from}` : `${Math.round(100 * share)} % from seed ${from} to ${from + 1}`;
  }

  // The current picture.

  of(seed) {
    if (!this.noise.has(seed)) this.noise.set(seed, normal(seed, this.dimension));
    return this.noise.get(seed);
  }

  latents(walk = this.walk) {
    const from = this.seed + Math.floor(walk);
    const base = scale(walk % 1 ? slerp(this.of(from), this.of(from + 1), walk % 1) : this.of(from), this.truncation);
    const { directions, scales } = this.about.directions;
    return directions.reduce((latents, direction, k) => add(latents, direction, this.shifts[k] * scales[k]), base);
  }

  shiftTo(latents) {
    const change = add(latents, this.latents(), -1);
    const { directions, scales } = this.about.directions;
    this.shifts = this.shifts.map((shift, k) => shift + directions[k].reduce((sum, value, i) => sum + value * change[i], 0) / scales[k]);
    this.changed();
  }

  changed() {
    const latents = this.latents();
    this.live.show(latents, this.label);
    if (!this.playing) this.directions.follow(latents, this.label);
    if (document.activeElement !== byId("seed")) byId("seed").value = this.seed;
    byId("walk").value = this.walk;
    this.markWalk();
    const name = this.label === null ? "" : `, ${this.about.classes[this.label]}`;
    byId("place").textContent = `Seed ${this.seed}${name}`;
    byId("picture").setAttribute("aria-label", `Generated picture: seed ${this.seed}${name}`);
    const rounded = (value) => String(Math.round(1000 * value) / 1000);
    writeAddress({
      seed: this.seed, walk: this.walk ? rounded(this.walk) : null, truncation: this.truncation === 1 ? null : rounded(this.truncation),
      class: this.label, shift: this.shifts.some((shift) => Math.abs(shift) > 1e-3) ? this.shifts.map(rounded).join(",") : null,
    });
    for (const button of byId("samples").children) {
      const shown = Number(button.dataset.seed) === this.seed && this.walk === 0 && (this.label === null || Number(button.dataset.label) === this.label);
      button.setAttribute("aria-current", shown);
    }
  }

  start(seed, label, isNew = false) {
    Object.assign(this, { seed, label, walk: 0 });
    this.shifts.fill(0);
    this.markClass?.(label);
    byId("seed").value = seed;
    this.changed();
    if (isNew) {
      this.first = seed;
      this.drawSamples();
    }
  }

  // The walk, from seed to seed.

  play() {
    this.playing = true;
    this.markPlay("Pause");
    if (this.walk >= this.walkEnd) this.walk = 0;
    let before = performance.now();
    const step = (now) => {
      if (!this.playing) return;
      this.walk = Math.min(this.walkEnd, this.walk + Math.max(0, now - before) / 1000 / SECONDS);
      before = now;
      this.changed();
      if (this.walk >= this.walkEnd) this.pause();
      else requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  pause() {
    this.playing = false;
    this.markPlay("Play");
    this.changed();
  }

  markPlay(words) {
    byId("play").textContent = words;
    byId("play").setAttribute("aria-pressed", this.playing);
  }

  // The grid: a seed each, and with all classes shown, the classes in turn.

  showSamples() {
    this.first = this.seed;
    for (let i = 0; i < SAMPLES; i++) {
      const button = thumb("", () => this.start(Number(button.dataset.seed), this.label === null ? null : Number(button.dataset.label)));
      button.append(document.createElement("span"));
      byId("samples").append(button);
    }
    byId("earlier").addEventListener("click", () => this.page(-SAMPLES));
    byId("later").addEventListener("click", () => this.page(SAMPLES));
    byId("all-classes-switch").hidden = this.label === null;
    byId("all-classes").addEventListener("change", () => this.drawSamples());
    if (this.label !== null) byId("classes").addEventListener("click", () => byId("all-classes").checked || this.drawSamples());
  }

  page(step) {
    this.first = clamp(this.first + step, 0, MOST_SEED);
    this.drawSamples();
  }

  async drawSamples() {
    const seeds = Array.from({ length: SAMPLES }, (_, i) => this.first + i);
    const labels = this.label === null ? null : seeds.map((_, i) => (byId("all-classes").checked ? i % this.about.classes.length : this.label));
    const pixels = await this.decoder.decode(seeds.map((seed) => scale(normal(seed, this.dimension), this.truncation)), labels);
    [...byId("samples").children].forEach((button, i) => {
      draw(button.firstChild, pixels, this.size, i);
      button.dataset.seed = seeds[i];
      if (labels) button.dataset.label = labels[i];
      button.lastChild.textContent = labels ? `${seeds[i]} · ${this.about.classes[labels[i]]}` : seeds[i];
      button.setAttribute("aria-label", labels ? `Seed ${seeds[i]}, ${this.about.classes[labels[i]]}` : `Seed ${seeds[i]}`);
    });
  }
}
