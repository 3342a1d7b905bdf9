// A plane of latents that one drags over: points of stored pictures, or decoded pictures, and a marker.

import { clamp } from "./vectors.js";

const STEP = 1 / 60; // of the map's width, for an arrow key
const LEAP = 1 / 12; // ... with the shift key
const TILES = 14;
const REST = 250; // milliseconds without a move before pictures are drawn on the map

const COLORS = ["#3b7dd8", "#e8793a", "#3f9d57", "#d1495b", "#8e6bbf", "#a0714f", "#d977b5", "#8a8f98", "#b0a52c", "#2fa7b8"];

/** A color for each class, and one for pictures without a class. */
export function colorsOf(count) {
  return Array.from({ length: count }, (_, i) => (count <= COLORS.length ? COLORS[i] : `hsl(${(360 * i) / count} 60% 52%)`));
}

export class LatentMap {
  /**
   * @param home the element, which takes the focus
   * @param points pairs of coordinates, one after the other; labels and colors of their classes, if they have any
   * @param onMove called with the coordinates that a person has chosen
   */
  constructor(home, { points = [], labels = null, colors = [], extent }, onMove) {
    Object.assign(this, { home, points, labels, colors, extent, onMove });
    this.canvas = home.querySelector("canvas");
    this.below = document.createElement("canvas"); // what does not move with the marker
    this.place = [0, 0];
    this.tiles = null;
    home.addEventListener("pointerdown", (event) => {
      home.setPointerCapture(event.pointerId);
      home.focus({ preventScroll: true });
      this.point(event);
    });
    home.addEventListener("pointermove", (event) => home.hasPointerCapture(event.pointerId) && this.point(event));
    home.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.resize()).observe(home);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
    this.resize();
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const [[left, right], [bottom, top]] = this.extent;
    const across = clamp((event.clientX - box.left) / box.width, 0, 1);
    const down = clamp((event.clientY - box.top) / box.height, 0, 1);
    this.onMove([left + across * (right - left), top + down * (bottom - top)]);
  }

  key(event) {
    const [x, y] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key] ?? [0, 0];
    if (!x && !y) return;
    event.preventDefault();
    const step = event.shiftKey ? LEAP : STEP;
    this.onMove(this.extent.map(([low, high], axis) => clamp(this.place[axis] + [x, y][axis] * step * (high - low), low, high)));
  }

  /** Puts the marker somewhere, without telling anybody. */
  moveTo(place) {
    this.place = place;
    this.paint();
  }

  /** Covers the map with decoded pictures, `decode(places)` -> canvases; null uncovers it. */
  cover(decode) {
    clearTimeout(this.timer);
    this.covering = decode;
    if (!decode) {
      this.tiles = null;
      this.redraw();
      return;
    }
    this.timer = setTimeout(() => this.fill(decode), this.tiles ? REST : 0);
  }

  async fill(decode) {
    const [[left, right], [bottom, top]] = this.extent;
    const tiles = [];
    for (let row = 0; row < TILES; row++) {
      const places = Array.from({ length: TILES }, (_, column) => [
        left + ((column + 0.5) / TILES) * (right - left),
        top + ((row + 0.5) / TILES) * (bottom - top),
      ]);
      tiles.push(await decode(places));
      await new Promise((resolve) => setTimeout(resolve));
      if (this.covering !== decode) return; // the pictures are of another place by now
    }
    this.tiles = tiles;
    this.redraw();
  }

  resize() {
    const width = Math.round(this.home.clientWidth * devicePixelRatio);
    if (!width || width === this.canvas.width) return;
    for (const canvas of [this.canvas, this.below]) canvas.width = canvas.height = width;
    this.redraw();
  }

  toCanvas([x, y]) {
    const [[left, right], [bottom, top]] = this.extent;
    const width = this.canvas.width;
    return [((x - left) / (right - left)) * width, ((y - top) / (bottom - top)) * width];
  }

  redraw() {
    const context = this.below.getContext("2d");
    const width = this.below.width;
    const style = getComputedStyle(this.home);
    context.clearRect(0, 0, width, width);
    if (this.tiles) {
      context.imageSmoothingEnabled = false;
      const side = width / TILES;
      this.tiles.forEach((row, r) => row.forEach((tile, c) => context.drawImage(tile, c * side, r * side, side + 1, side + 1)));
    } else {
      context.strokeStyle = style.getPropertyValue("--line");
      context.lineWidth = devicePixelRatio;
      const [x, y] = this.toCanvas([0, 0]);
      context.beginPath();
      context.moveTo(x, 0);
      context.lineTo(x, width);
      context.moveTo(0, y);
      context.lineTo(width, y);
      context.stroke();
    }
    const radius = 2.8 * devicePixelRatio;
    for (let i = 0; !this.tiles && i < this.points.length / 2; i++) {
      const [x, y] = this.toCanvas([this.points[2 * i], this.points[2 * i + 1]]);
      context.fillStyle = this.colors[this.labels?.[i]] ?? style.getPropertyValue("--other");
      context.globalAlpha = 0.75;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fill();
    }
    context.globalAlpha = 1;
    this.paint();
  }

  paint() {
    const context = this.canvas.getContext("2d");
    const style = getComputedStyle(this.home);
    context.clearRect(0, 0, this.canvas.width, this.canvas.width);
    context.drawImage(this.below, 0, 0);
    const [x, y] = this.toCanvas(this.place).map((value) => clamp(value, 0, this.canvas.width));
    for (const [color, line] of [[style.getPropertyValue("--card"), 6], [style.getPropertyValue("--accent"), 3]]) {
      context.strokeStyle = color;
      context.lineWidth = line * devicePixelRatio;
      context.beginPath();
      context.arc(x, y, 9 * devicePixelRatio, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}
