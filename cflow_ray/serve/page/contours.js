// What a threshold cuts out of an anomaly map: regions and their outline. Pure functions.
//
// A map is { width, height, values }: values 0..255, row by row, stand for 0..1.

/** 8-connected regions above the threshold, highest peak first, in pixels of the original as the server gives them.
 *  `frame` is what the map covers of the original: left, top, width, height. */
export function findRegions(map, threshold, frame) {
  const { width, height, values } = map;
  const [left, top, frameWidth, frameHeight] = frame;
  const seen = new Uint8Array(values.length);
  const limit = 255 * threshold;
  const regions = [];
  for (let start = 0; start < values.length; start++) {
    if (seen[start] || values[start] <= limit) continue;
    const { area, peak, box } = fill(map, start, limit, seen);
    regions.push({
      box: [
        left + Math.floor((box[0] * frameWidth) / width),
        top + Math.floor((box[1] * frameHeight) / height),
        left + Math.ceil((box[2] * frameWidth) / width),
        top + Math.ceil((box[3] * frameHeight) / height),
      ],
      area: (area * frameWidth * frameHeight) / values.length,
      peak: peak / 255,
    });
  }
  return regions.sort((one, other) => other.peak - one.peak);
}

function fill({ width, height, values }, start, limit, seen) {
  const box = [width, height, 0, 0];
  const stack = [start];
  let area = 0;
  let peak = 0;
  seen[start] = 1;
  while (stack.length) {
    const at = stack.pop();
    const x = at % width;
    const y = (at - x) / width;
    area += 1;
    peak = Math.max(peak, values[at]);
    box[0] = Math.min(box[0], x);
    box[1] = Math.min(box[1], y);
    box[2] = Math.max(box[2], x + 1);
    box[3] = Math.max(box[3], y + 1);
    for (let ny = Math.max(0, y - 1); ny <= Math.min(height - 1, y + 1); ny++) {
      for (let nx = Math.max(0, x - 1); nx <= Math.min(width - 1, x + 1); nx++) {
        const next = ny * width + nx;
        if (seen[next] || values[next] <= limit) continue;
        seen[next] = 1;
        stack.push(next);
      }
    }
  }
  return { area, peak, box };
}

/** The line at which the map crosses the threshold, in pixels of the map (marching squares, linear between centres). */
export function outline({ width, height, values }, threshold) {
  const limit = 255 * threshold;
  const path = new Path2D();
  const value = (x, y) => (x < 0 || y < 0 || x >= width || y >= height ? Math.min(0, limit - 1) : values[y * width + x]);
  const between = (from, to) => (limit - from) / (to - from);
  for (let y = -1; y < height; y++) {
    for (let x = -1; x < width; x++) {
      const a = value(x, y);
      const b = value(x + 1, y);
      const c = value(x + 1, y + 1);
      const d = value(x, y + 1);
      const above = (a > limit) + 2 * (b > limit) + 4 * (c > limit) + 8 * (d > limit);
      if (above === 0 || above === 15) continue;
      const sides = {
        top: () => [x + 0.5 + between(a, b), y + 0.5],
        right: () => [x + 1.5, y + 0.5 + between(b, c)],
        bottom: () => [x + 0.5 + between(d, c), y + 1.5],
        left: () => [x + 0.5, y + 0.5 + between(a, d)],
      };
      for (const [from, to] of SEGMENTS[above]) {
        path.moveTo(...sides[from]());
        path.lineTo(...sides[to]());
      }
    }
  }
  return path;
}

// By which corners are above: 1 top left, 2 top right, 4 bottom right, 8 bottom left. Regions join at corners.
const SEGMENTS = {
  1: [["left", "top"]],
  2: [["top", "right"]],
  3: [["left", "right"]],
  4: [["right", "bottom"]],
  5: [["left", "bottom"], ["top", "right"]],
  6: [["top", "bottom"]],
  7: [["left", "bottom"]],
  8: [["bottom", "left"]],
  9: [["bottom", "top"]],
  10: [["left", "top"], ["bottom", "right"]],
  11: [["bottom", "right"]],
  12: [["right", "left"]],
  13: [["right", "top"]],
  14: [["top", "left"]],
};
