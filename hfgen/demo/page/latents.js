// The view of an Auto-Encoder or VAE. There is one current place in the space of latents: the map, the sliders, the
// drawing, the way between two pictures and the samples all move it, and all of them follow it.

import { chooseClass, Directions, slider } from "./controls.js";
import { Decoder, Live } from "./decoder.js";
import { Drawing } from "./drawing.js";
import { colorsOf, LatentMap } from "./map.js";
import { draw, StoredPictures, thumb } from "./pictures.js";
import { StoredLatents } from "./stored.js";
import { add, dot, mix, normal, randomSeed, stacked } from "./vectors.js";

const SAMPLES = 24;
const STRIP = 9;
const byId = (id) => document.getElementById(id);

export async function showLatents({ about, files, networks }) {
  const size = about.image;
  const dimension = about.latent_shape.reduce((product, side) => product * side, 1);
  const center = Float32Array.from(about.center);
  const decoder = new Decoder(networks.decoder, about.latent_shape);
  const stored = files.latents ? new StoredLatents(files.latents, dimension, center) : null;
  const pictures = files.pictures ? await StoredPictures.open(files.pictures, about.pictures, size) : null;
  const view = new LatentsView({ about, networks, size, dimension, center, decoder, stored, pictures });
  await view.show();
}

class LatentsView {
  constructor(parts) {
    Object.assign(this, parts);
    this.latents = this.center;
    this.label = this.about.classes.length && this.about.conditional ? 0 : null;
    this.axes = this.about.map.directions;
    this.live = new Live(this.decoder, (pixels) => this.picture(pixels), byId("timing"));
  }

  async show() {
    this.showMap();
    this.showClasses();
    this.directions = new Directions(
      byId("directions"),
      { ...this.about.directions, center: this.center, size: this.size, decoder: this.decoder, first: this.axes.length + 1 },
      (latents) => this.move(latents),
    );
    byId("directions-section").hidden = !this.about.directions.directions.length;
    byId("draw-section").hidden = !this.networks.encoder;
    if (this.networks.encoder) this.drawing = new Drawing(this, (latents) => this.move(latents));
    byId("random").addEventListener("click", async () => this.move((await this.sample(1, 1))[0]));
    byId("center").addEventListener("click", () => this.move(this.center));
    this.move(this.center);
    await this.showSamples();
    await this.showBetween();
  }

  // The current place.

  move(latents) {
    this.latents = latents;
    const place = this.axes.map((axis) => dot(add(latents, this.center, -1), axis));
    this.map.moveTo(place);
    this.directions.follow(latents, this.label);
    this.live.show(latents, this.label);
    if (byId("backdrop").checked) this.cover();
    clearTimeout(this.telling);
    this.telling = setTimeout(() => this.tell(place), 150);
  }

  /** Says in words where the marker is: what stored pictures are near. */
  tell(place) {
    const rounded = (value) => (Math.abs(value) < 0.05 ? 0 : value).toFixed(1).replace("-", "−");
    const where = place.map((value, axis) => rounded(value / this.about.map.scales[axis])).join(", ");
    const names = this.about.pictures?.labels && this.about.classes;
    if (!this.stored || !names) {
      byId("place").textContent = `At ${where}`;
      return;
    }
    const near = this.stored.nearest(this.latents, 5).map((i) => names[this.about.pictures.labels[i]]);
    const counts = new Map(near.map((name) => [name, near.filter((other) => other === name).length]));
    const words = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 2).map(([name]) => name).join(" and ");
    byId("place").textContent = `At ${where}: near ${words}`;
  }

  picture(pixels) {
    draw(byId("picture"), pixels, this.size);
    this.pixels = pixels;
  }

  // The map.

  showMap() {
    const { map, pictures, classes } = this.about;
    const points = new Float32Array(2 * (this.stored?.count ?? 0));
    for (let i = 0; i < points.length / 2; i++) {
      const offset = add(this.stored.at(i), this.center, -1);
      this.axes.forEach((axis, k) => (points[2 * i + k] = dot(offset, axis)));
    }
    const labels = pictures?.labels ?? null;
    const colors = labels ? colorsOf(classes.length) : [];
    this.map = new LatentMap(byId("map"), { points, labels, colors, extent: map.extent }, (place) => this.go(place));
    byId("map-help").textContent = `${map.words} Drag, or use the arrow keys (with Shift: farther).`;
    if (labels && classes.length <= 20) {
      byId("legend").append(...classes.map((name, i) => {
        const entry = document.createElement("span");
        entry.textContent = name;
        entry.style.setProperty("--color", colors[i]);
        return entry;
      }));
    }
    byId("backdrop").addEventListener("change", () => (byId("backdrop").checked ? this.cover() : this.map.cover(null)));
  }

  /** Latents at a place of the map; what the map does not show stays as it is. */
  at(place) {
    const offset = add(this.latents, this.center, -1);
    return this.axes.reduce((latents, axis, k) => add(latents, axis, place[k] - dot(offset, axis)), this.latents);
  }

  go(place) {
    this.move(this.at(place));
  }

  cover() {
    const latents = this.latents;
    const beyond = this.axes.reduce((rest, axis) => add(rest, axis, -dot(rest, axis)), add(latents, this.center, -1));
    const key = `${this.label} ${[...beyond].map((value) => value.toFixed(2)).join(" ").replaceAll("-0.00", "0.00")}`;
    if (key === this.covered && this.map.covering) return;
    this.covered = key;
    this.map.cover(async (places) => {
      const pixels = await this.decoder.decode(places.map((place) => this.at(place)), this.label);
      return places.map((_, i) => {
        const tile = document.createElement("canvas");
        draw(tile, pixels, this.size, i);
        return tile;
      });
    });
  }

  showClasses() {
    if (this.label === null) return;
    chooseClass(byId("classes"), this.about.classes, this.label, async (index) => {
      this.label = index;
      this.move(this.latents);
      await this.drawSamples();
      await this.drawStrip();
    });
  }

  // Samples.

  /** Latents drawn from the prior, or, where there is none, from a distribution like that of the stored pictures. */
  async sample(count, temperature) {
    const seeds = Array.from({ length: count }, randomSeed);
    if (!this.about.has_prior) return seeds.map((seed) => this.stored.draw(seed, temperature));
    const noise = seeds.map((seed) => normal(seed, this.dimension).map((value) => temperature * value));
    if (!this.networks.prior) return noise;
    const network = this.networks.prior;
    const { data } = await network.first({
      noise: network.tensor(stacked(noise), [count, ...this.about.latent_shape]),
      labels: this.label === null ? null : network.tensor(Array(count).fill(this.label), [count]),
    });
    return noise.map((_, i) => data.slice(i * this.dimension, (i + 1) * this.dimension));
  }

  async showSamples() {
    const home = byId("samples");
    this.sampled = [];
    for (let i = 0; i < SAMPLES; i++) home.append(thumb(`Sample ${i + 1}`, () => this.move(this.sampled[i])));
    const again = async () => {
      this.sampled = await this.sample(SAMPLES, byId("temperature").valueAsNumber);
      await this.drawSamples();
    };
    slider(byId("temperature"), byId("temperature-value"), (value) => value.toFixed(2));
    byId("temperature").addEventListener("change", again);
    byId("again").addEventListener("click", again);
    await again();
  }

  async drawSamples() {
    const pixels = await this.decoder.decode(this.sampled, this.label);
    [...byId("samples").children].forEach((button, i) => draw(button.firstChild, pixels, this.size, i));
  }

  // The way between two pictures.

  async showBetween() {
    byId("strip").append(...Array.from({ length: STRIP }, () => document.createElement("canvas")));
    byId("between").addEventListener("input", () => this.move(mix(...this.ends, byId("between").valueAsNumber)));
    [byId("from"), byId("to")].forEach((button, end) => button.addEventListener("click", () => {
      this.ends[end] = this.latents;
      this.drawStrip();
    }));
    byId("ends").addEventListener("click", () => this.chooseEnds());
    await this.chooseEnds();
  }

  async chooseEnds() {
    if (this.stored) {
      const any = () => Math.floor(Math.random() * this.stored.count);
      const labels = this.about.pictures.labels;
      const [first, others] = [any(), Array.from({ length: 20 }, any)];
      const second = others.find((other) => other !== first && labels?.[other] !== labels?.[first]) ?? others[0];
      this.ends = [this.stored.at(first), this.stored.at(second)];
    } else {
      this.ends = await this.sample(2, 1);
    }
    await this.drawStrip();
  }

  async drawStrip() {
    const places = Array.from({ length: STRIP + 2 }, (_, i) => mix(...this.ends, i / (STRIP + 1)));
    const pixels = await this.decoder.decode(places, this.label);
    const canvases = [byId("from").firstChild, ...byId("strip").children, byId("to").firstChild];
    canvases.forEach((canvas, i) => draw(canvas, pixels, this.size, i));
  }
}
