// Parts that several views have: a choice of classes, and sliders on directions with pictures at their ends.

import { draw } from "./pictures.js";
import { add, dot } from "./vectors.js";

/** Buttons of which one is pressed, moved by the arrow keys as radio buttons are. */
export function chooseClass(home, names, chosen, onChoice) {
  const buttons = names.map((name, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.setAttribute("role", "radio");
    button.addEventListener("click", () => choose(index, true));
    return button;
  });
  function choose(index, tell) {
    buttons.forEach((button, i) => {
      button.setAttribute("aria-checked", i === index);
      button.tabIndex = i === index ? 0 : -1;
    });
    if (tell) onChoice(index);
  }
  home.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const index = (buttons.indexOf(document.activeElement) + step + names.length) % names.length;
    buttons[index].focus();
    choose(index, true);
  });
  home.append(...buttons);
  home.hidden = false;
  choose(chosen, false);
  return (index) => choose(index, false);
}

/** Sliders on directions, unit vectors with a scale each. `onMove(latents)` gets the current latents, moved. */
export class Directions {
  constructor(home, { directions, scales, center, size, decoder, first = 1, reach = 3 }, onMove) {
    Object.assign(this, { directions, scales, center, size, decoder, reach });
    this.rows = directions.map((direction, k) => {
      const row = document.createElement("div");
      row.className = "direction";
      const [low, high] = [document.createElement("canvas"), document.createElement("canvas")];
      const slider = document.createElement("input");
      Object.assign(slider, { type: "range", min: -reach, max: reach, step: 0.02, value: 0 });
      slider.setAttribute("aria-label", `Direction ${k + first}`);
      slider.addEventListener("input", () => {
        const change = (slider.valueAsNumber - this.place(this.latents, k)) * scales[k];
        onMove(add(this.latents, direction, change));
      });
      row.append(low, slider, high);
      home.append(row);
      return { slider, low, high };
    });
    this.timer = null;
  }

  place(latents, k) {
    return dot(add(latents, this.center, -1), this.directions[k]) / this.scales[k];
  }

  /** Follows the current latents; the pictures at the ends wait until they rest. */
  follow(latents, label) {
    this.latents = latents;
    this.rows.forEach(({ slider }, k) => {
      if (document.activeElement !== slider || Math.abs(slider.valueAsNumber - this.place(latents, k)) > 0.03) slider.value = this.place(latents, k);
    });
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.drawEnds(label), 120);
  }

  async drawEnds(label) {
    if (!this.rows.length) return;
    const ends = this.directions.flatMap((direction, k) =>
      [-this.reach, this.reach].map((end) => add(this.latents, direction, (end - this.place(this.latents, k)) * this.scales[k])),
    );
    const pixels = await this.decoder.decode(ends, label);
    this.rows.forEach(({ low, high }, k) => {
      draw(low, pixels, this.size, 2 * k);
      draw(high, pixels, this.size, 2 * k + 1);
    });
  }
}

/** A slider, and the words for its value beside it. */
export function slider(input, output, words, onInput = () => {}) {
  const show = () => {
    output.textContent = words(input.valueAsNumber);
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => {
    show();
    onInput(input.valueAsNumber);
  });
  show();
  return show;
}
