// Pixels in [0, 1], (channels, height, width), to canvases and back.

/** The context of a canvas whose pixels are read again. */
export const contextOf = (canvas) => canvas.getContext("2d", { willReadFrequently: true });

/** Draws picture `index` of a batch of pixels. */
export function draw(canvas, pixels, { channels, height, width }, index = 0) {
  const plane = height * width;
  const start = index * channels * plane;
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const context = contextOf(canvas);
  const image = context.createImageData(width, height);
  for (let i = 0; i < plane; i++) {
    for (let channel = 0; channel < 3; channel++) {
      image.data[4 * i + channel] = 255 * pixels[start + (channels === 1 ? 0 : channel) * plane + i] + 0.5;
    }
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/** Draws a picture, painted orange where `map`, (height, width), comes near `most`. */
export function drawStrange(canvas, pixels, map, size, most) {
  draw(canvas, pixels, size);
  const context = contextOf(canvas);
  const image = context.getImageData(0, 0, size.width, size.height);
  for (let i = 0; i < map.length; i++) {
    const share = Math.min(1, Math.max(0, map[i] / most));
    [240, 138, 66].forEach((value, channel) => {
      image.data[4 * i + channel] = (1 - share) * image.data[4 * i + channel] * 0.6 + share * value;
    });
  }
  context.putImageData(image, 0, 0);
}

/** Pixels of what is drawn on a canvas of the model's own size. */
export function read(canvas, { channels, height, width }) {
  const { data } = contextOf(canvas).getImageData(0, 0, width, height);
  const plane = height * width;
  const pixels = new Float32Array(channels * plane);
  for (let i = 0; i < plane; i++) {
    const [red, green, blue] = [data[4 * i], data[4 * i + 1], data[4 * i + 2]];
    if (channels === 1) pixels[i] = (0.299 * red + 0.587 * green + 0.114 * blue) / 255;
    else [red, green, blue].forEach((value, channel) => (pixels[channel * plane + i] = value / 255));
  }
  return pixels;
}

/** A button that shows a picture. */
export function thumb(label, onPress) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "thumb";
  button.setAttribute("aria-label", label);
  button.append(document.createElement("canvas"));
  button.addEventListener("click", onPress);
  return button;
}

/** The stored pictures: pixels out of one large picture with `columns` in a row. */
export class StoredPictures {
  static async open(bytes, about, size) {
    const sheet = await createImageBitmap(new Blob([bytes], { type: "image/png" }), { colorSpaceConversion: "none" });
    return new StoredPictures(sheet, about, size);
  }

  constructor(sheet, { columns }, size) {
    this.sheet = sheet;
    this.columns = columns;
    this.size = size;
  }

  drawOn(canvas, index) {
    const { width, height } = this.size;
    canvas.width = width;
    canvas.height = height;
    const [column, row] = [index % this.columns, Math.floor(index / this.columns)];
    contextOf(canvas).drawImage(this.sheet, column * width, row * height, width, height, 0, 0, width, height);
  }

  pixels(index) {
    const canvas = document.createElement("canvas");
    this.drawOn(canvas, index);
    return read(canvas, this.size);
  }
}
