// A canvas to draw on, and the drawing as the model's own pictures are: as large, and where they have their middle.

import { contextOf } from "./pictures.js";
import { clamp } from "./vectors.js";

const SIDE = 320;
const INK = 0.15; // how different from the background a pixel is that has been drawn on

export class Pad {
  /**
   * @param canvas where to draw
   * @param size of the model's pictures
   * @param style background, 0 black to 1 white; extent and middle of what stored pictures show, or null: as drawn
   * @param onChange called after each stroke of the pen, at most once a frame
   */
  constructor(canvas, size, style, onChange) {
    Object.assign(this, { canvas, size, style, onChange });
    canvas.width = SIDE;
    canvas.height = Math.round((SIDE * size.height) / size.width);
    this.context = contextOf(canvas);
    this.width = SIDE * clamp(2.4 / size.width, 0.05, 0.15);
    this.pen = [canvas.width / 2, canvas.height / 2];
    this.down = false;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pen = this.at(event);
      this.stroke(this.pen);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!canvas.hasPointerCapture(event.pointerId)) return;
      for (const part of event.getCoalescedEvents?.() ?? [event]) this.stroke(this.at(part));
    });
    canvas.addEventListener("keydown", (event) => this.key(event));
    this.clear(false);
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * this.canvas.width, ((event.clientY - box.top) / box.height) * this.canvas.height];
  }

  key(event) {
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
    if (event.key === " ") this.down = !this.down;
    else if (!x && !y) return;
    event.preventDefault();
    const { width, height } = this.canvas;
    const to = [clamp(this.pen[0] + (x * width) / 24, 0, width), clamp(this.pen[1] + (y * height) / 24, 0, height)];
    if (this.down) this.stroke(to);
    else this.pen = to;
  }

  stroke(to) {
    const gray = this.style.background < 0.5 ? 255 : 0;
    Object.assign(this.context, { strokeStyle: `rgb(${gray} ${gray} ${gray})`, lineWidth: this.width, lineCap: "round", lineJoin: "round" });
    this.context.beginPath();
    this.context.moveTo(...this.pen);
    this.context.lineTo(...to);
    this.context.stroke();
    this.pen = to;
    this.empty = false;
    this.fits = this.style.extent !== null;
    this.changed();
  }

  clear(tell = true) {
    const gray = 255 * this.style.background;
    this.context.fillStyle = `rgb(${gray} ${gray} ${gray})`;
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.empty = true;
    if (tell) this.changed();
  }

  /** Puts a picture on the pad, in the middle and as large as fits; it is then taken as it is. */
  async put(source) {
    const picture = source instanceof Blob ? await createImageBitmap(source) : source;
    this.clear(false);
    const { width, height } = this.canvas;
    const factor = Math.max(width / picture.width, height / picture.height);
    const [w, h] = [picture.width * factor, picture.height * factor];
    this.context.imageSmoothingEnabled = source instanceof Blob;
    this.context.drawImage(picture, (width - w) / 2, (height - h) / 2, w, h);
    this.empty = this.fits = false;
    this.changed();
  }

  changed() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      this.onChange();
    });
  }

  /** Draws what the model is to see on a canvas of its size. */
  drawOn(target) {
    const { width, height } = this.size;
    target.width = width;
    target.height = height;
    const context = contextOf(target);
    context.imageSmoothingQuality = "high";
    const gray = 255 * this.style.background;
    context.fillStyle = `rgb(${gray} ${gray} ${gray})`;
    context.fillRect(0, 0, width, height);
    const box = this.fits && this.drawn();
    if (!box) {
      context.drawImage(shrunk(this.canvas, width), 0, 0, width, height);
      return;
    }
    const factor = (this.style.extent * Math.max(width, height)) / Math.max(box.right - box.left, box.bottom - box.top);
    const [x, y] = [this.style.middle[0] * width - factor * box.x, this.style.middle[1] * height - factor * box.y];
    context.drawImage(shrunk(this.canvas, this.canvas.width * factor), x, y, this.canvas.width * factor, this.canvas.height * factor);
  }

  /** The box around the drawing and its center of mass; null if there is none. */
  drawn() {
    const { width, height } = this.canvas;
    const { data } = this.context.getImageData(0, 0, width, height);
    const box = { left: width, right: 0, top: height, bottom: 0 };
    let [mass, x, y] = [0, 0, 0];
    for (let row = 0; row < height; row++) {
      for (let column = 0; column < width; column++) {
        const ink = Math.abs(data[4 * (row * width + column)] / 255 - this.style.background);
        if (ink < INK) continue;
        mass += ink;
        x += ink * column;
        y += ink * row;
        box.left = Math.min(box.left, column);
        box.right = Math.max(box.right, column + 1);
        box.top = Math.min(box.top, row);
        box.bottom = Math.max(box.bottom, row + 1);
      }
    }
    return mass ? { ...box, x: x / mass, y: y / mass } : null;
  }
}

/** A canvas, halved until it is at most twice as wide as it is to be: browsers skip pixels when they shrink more. */
function shrunk(canvas, width) {
  let current = canvas;
  while (current.width >= 2 * width) {
    const next = document.createElement("canvas");
    next.width = current.width / 2;
    next.height = current.height / 2;
    contextOf(next).drawImage(current, 0, 0, next.width, next.height);
    current = next;
  }
  return current;
}
