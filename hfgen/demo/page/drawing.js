// A drawing or a picture of one's own, through the model: what it rebuilds, where it fails, and what is near.

import { Pad } from "./pad.js";
import { draw, drawStrange, read, thumb } from "./pictures.js";

const NEIGHBORS = 8;
const ERROR = 0.6; // a difference of brightness that is painted in full
const byId = (id) => document.getElementById(id);

export class Drawing {
  /**
   * @param view what a view of latents has: about, networks, size, decoder, stored, pictures, label
   * @param onLatents called with the latents of each drawing
   */
  constructor(view, onLatents) {
    this.view = view;
    this.onLatents = onLatents;
    byId("draw-title").textContent = view.about.drawing.title;
    this.pad = new Pad(byId("pad"), view.size, view.about.drawing, () => this.changed());
    byId("clear").addEventListener("click", () => this.pad.clear());
    byId("file").addEventListener("change", (event) => this.open(event.target.files[0]));
    addEventListener("paste", (event) => {
      const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
      if (file) this.open(file);
    });
    this.blank();
  }

  async open(file) {
    if (!file) return;
    try {
      await this.pad.put(file);
    } catch {
      byId("strangeness").textContent = `${file.name} is no picture that this browser can read.`;
    }
  }

  blank() {
    for (const id of ["seen", "rebuilt", "strange"]) {
      const canvas = byId(id);
      canvas.width = this.view.size.width;
      canvas.height = this.view.size.height;
    }
    byId("strangeness").textContent = "Where it is strange";
    byId("neighbors-part").hidden = true;
  }

  /** Reads the pad through the model. A change while it runs is read afterwards. */
  async changed() {
    if (this.pad.empty) return this.blank();
    if (this.running) {
      this.again = true;
      return;
    }
    this.running = true;
    do {
      this.again = false;
      await this.read();
    } while (this.again);
    this.running = false;
  }

  async read() {
    const { networks, size, decoder, about, label } = this.view;
    this.pad.drawOn(byId("seen"));
    const pixels = read(byId("seen"), size);
    draw(byId("seen"), pixels, size); // in gray, if the model sees gray
    const labels = label === null ? null : networks.encoder.tensor([label], [1]);
    const input = networks.encoder.tensor(pixels, [1, size.channels, size.height, size.width]);
    const { data: latents } = await networks.encoder.first({ pixel_values: input, labels });
    const rebuilt = await decoder.decode([latents], label);
    draw(byId("rebuilt"), rebuilt, size);
    await this.showStrange(pixels, rebuilt, input);
    this.showNeighbors(latents);
    this.onLatents(latents);
  }

  async showStrange(pixels, rebuilt, input) {
    const { networks, size, about } = this.view;
    const plane = size.height * size.width;
    let [map, most, score] = [new Float32Array(plane), ERROR, 0];
    if (networks.anomaly) {
      const { scores, maps } = await networks.anomaly.run({ pixel_values: input });
      [map, score] = [maps.data, scores.data[0]];
      most = about.strangeness.map_most;
    } else {
      pixels.forEach((value, i) => {
        map[i % plane] += Math.abs(value - rebuilt[i]) / size.channels;
        score += (value - rebuilt[i]) ** 2 / pixels.length;
      });
    }
    drawStrange(byId("strange"), pixels, map, size, most);
    const { name, quantiles, threshold } = about.strangeness;
    let words = `${name} ${score.toPrecision(2)}`;
    if (threshold !== null) words += score > threshold ? ": an anomaly" : ": normal";
    else if (quantiles) {
      const share = quantiles.filter((value) => value < score).length / quantiles.length;
      words += `: stranger than ${Math.round(100 * share)} % of the stored pictures`;
    }
    byId("strangeness").textContent = `${words}.`;
  }

  showNeighbors(latents) {
    const { stored, pictures, about } = this.view;
    if (!stored || !pictures) return;
    byId("neighbors-part").hidden = false;
    byId("neighbors").replaceChildren(...stored.nearest(latents, NEIGHBORS).map((index) => {
      const name = about.pictures.labels ? about.classes[about.pictures.labels[index]] : "";
      const button = thumb(`Stored picture, ${name || index}`, () => this.onLatents(stored.at(index)));
      pictures.drawOn(button.firstChild, index);
      button.append(name);
      return button;
    }));
  }
}
