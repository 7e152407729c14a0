// The picture: the image, the heat map over it, the outline at the threshold and the regions' numbers.

import { outline } from "./contours.js";

const LONGEST_MAP = 1024; // pixels of a map's longer side that are worked with
const CANVAS = [1024, 1600]; // shortest and longest of the canvas' longer side: small images are drawn larger
const NUMBERED = 9;
const LINE = 1.7; // pixels of the screen

// The colours of the heat map, as those of the threshold's slider in page.css: pale yellow over orange to dark red.
const STOPS = [[255, 255, 178], [254, 225, 128], [254, 184, 82], [253, 141, 60], [246, 86, 40], [214, 28, 30], [158, 0, 36]];

/** The image's pixels, upright; null where the browser does not know the format. */
export async function readImage(file) {
  try {
    return await createImageBitmap(file);
  } catch {
    return null;
  }
}

/** A map as numbers, from the base64 of its PNG; `frame` is its size there. */
export async function readMap(base64) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }), { colorSpaceConversion: "none" });
  const scale = Math.min(1, LONGEST_MAP / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * scale));
  const height = Math.max(1, Math.round(bitmap.height * scale));
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height).data;
  const values = new Uint8Array(width * height);
  for (let at = 0; at < values.length; at++) values[at] = pixels[4 * at];
  return { width, height, values, frame: [bitmap.width, bitmap.height] };
}

/** What the map covers of the image: left, top, width, height. A server that does not say crops the middle. */
export function frameOf(answer, map) {
  if (answer.frame) return answer.frame;
  const [width, height] = map.frame;
  return [Math.floor((answer.width - width) / 2), Math.floor((answer.height - height) / 2), width, height];
}

/** The map in colour, more opaque where it is higher. */
export function heat(map) {
  const canvas = new OffscreenCanvas(map.width, map.height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(map.width, map.height);
  for (let at = 0; at < map.values.length; at++) {
    const colour = COLOURS[map.values[at]];
    image.data.set(colour, 4 * at);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

const COLOURS = Array.from({ length: 256 }, (_, value) => {
  const at = (value / 255) * (STOPS.length - 1);
  const low = Math.min(Math.floor(at), STOPS.length - 2);
  const mix = STOPS[low].map((channel, number) => channel + (STOPS[low + 1][number] - channel) * (at - low));
  return [...mix.map(Math.round), Math.round(255 * (value / 255) ** 3)]; // what is normal stays visible
});

/** Draw one. `shown` has image, map, heat, answer, regions, threshold (null: none), opacity 0..1 and `marked`, a region. */
export function draw(canvas, shown) {
  const { width, height } = shown.answer;
  const longest = Math.max(width, height);
  const scale = Math.min(Math.max(longest, CANVAS[0]), CANVAS[1]) / longest;
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  if (shown.image) context.drawImage(shown.image, 0, 0, canvas.width, canvas.height);
  if (!shown.map) return;
  const [left, top, frameWidth, frameHeight] = frameOf(shown.answer, shown.map).map((side) => side * scale);
  context.globalAlpha = shown.opacity;
  context.drawImage(shown.heat, left, top, frameWidth, frameHeight);
  context.globalAlpha = 1;
  const line = (LINE * canvas.width) / (canvas.clientWidth || canvas.width);
  if (shown.threshold !== null) {
    const toCanvas = new DOMMatrix([frameWidth / shown.map.width, 0, 0, frameHeight / shown.map.height, left, top]);
    const path = new Path2D();
    path.addPath(outline(shown.map, shown.threshold), toCanvas);
    stroke(context, path, line);
  }
  shown.regions.slice(0, NUMBERED).forEach((region, number) => label(context, region, number + 1, scale, line));
  if (shown.marked) stroke(context, rectangle(shown.marked.box, scale), line);
}

/** A light line with dark edges, to be seen on any ground. */
function stroke(context, path, line) {
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = "rgb(8 14 20 / 0.8)";
  context.lineWidth = 2.4 * line;
  context.stroke(path);
  context.strokeStyle = "#fff";
  context.lineWidth = line;
  context.stroke(path);
}

function rectangle([left, top, right, bottom], scale) {
  const path = new Path2D();
  path.rect(left * scale, top * scale, (right - left) * scale, (bottom - top) * scale);
  return path;
}

function label(context, region, number, scale, line) {
  const size = 11 * line;
  const { width, height } = context.canvas;
  const x = Math.min(Math.max(region.box[0] * scale - size * 0.3, size * 0.7), width - size * 0.7);
  const y = Math.min(Math.max(region.box[1] * scale - size * 0.3, size * 0.7), height - size * 0.7);
  context.beginPath();
  context.arc(x, y, size * 0.62, 0, 2 * Math.PI);
  context.fillStyle = "rgb(8 14 20 / 0.85)";
  context.fill();
  context.font = `600 ${size * 0.8}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillStyle = "#fff";
  context.fillText(String(number), x, y + size * 0.04);
}

/** A small square of an image for a list. */
export function drawThumbnail(canvas, image) {
  const context = canvas.getContext("2d");
  const side = Math.min(image.width, image.height);
  context.imageSmoothingQuality = "high";
  const place = [(image.width - side) / 2, (image.height - side) / 2, side, side];
  context.drawImage(image, ...place, 0, 0, canvas.width, canvas.height);
}
