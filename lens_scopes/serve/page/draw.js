// Numbers as colours, as the rest of the package has them: on a canvas, as SVG, and tokens as text that can be read.

let colours = null;
export const setColours = (given) => (colours = given);

/** Red, green and blue of a value on the scale 0..end (or -end..end); grey without a number. */
export function shade(value, end) {
  if (value === null) return [158, 158, 158];
  const share = Math.min(1, Math.abs(value) / end);
  const full = value < 0 ? colours.negative : colours.high;
  return colours.low.map((low, i) => Math.round(low + (full[i] - low) * share));
}

/** Black or white, whichever can be read on a colour (WCAG 2's luminance). */
export function ink(rgb) {
  const linear = rgb.map((c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? "#000" : "#fff";
}

export const css = (rgb) => `rgb(${rgb.join(",")})`;

/** Background and ink of a value, as a style. */
export function painted(value, end) {
  const rgb = shade(value, end);
  return `background:${css(rgb)};color:${ink(rgb)}`;
}

export const endOf = (grid, row) => (grid.ends.length ? grid.ends[row] : grid.largest);

/** Three significant digits, with a minus that can be seen. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  const text = value.toPrecision(3);
  const short = String(Number(text)).length <= text.length ? String(Number(text)) : text;
  return short.replace(/^-/, "−");
}

export const percent = (share) => (share === null || !isFinite(share) ? "–" : `${Number((100 * share).toPrecision(3))} %`.replace("-", "−"));

const MARKS = { "\n": "↵", "\r": "␍", "\t": "⇥" };
// Characters that reorder or hide what stands around them.
const UNSAFE = /[\0-\x08\x0b-\x1f\x7f-\x9f\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff]/g;
const code = (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`;

/** A token's text for display: blanks and control characters made visible, long ones cut. */
export function visible(text, longest = 24) {
  if (text === "") return "∅";
  let shown = text.replace(/[\n\r\t]/g, (c) => MARKS[c]);
  // Whole characters beyond the first plane stay; halves do not.
  shown = [...shown].map((c) => (c.length > 1 ? c : c.replace(UNSAFE, code))).join("");
  if (shown.trim() === "") shown = shown.replace(/ /g, "·");
  return shown.length > longest ? `${shown.slice(0, longest - 1)}…` : shown;
}

/** A token by itself: blanks at its ends are seen. */
export function named(text, longest = 24) {
  const bare = text.replace(/^ +| +$/g, "");
  if (!bare) return visible(text, longest);
  const [left] = text.match(/^ */);
  const [right] = text.match(/ *$/);
  return "␣".repeat(left.length) + visible(bare, longest) + "␣".repeat(right.length);
}

/** The sum of magnitudes of the numbers that are some. */
export const total = (line) => line.reduce((sum, value) => sum + Math.abs(value ?? 0), 0);

/** Where the largest magnitudes are, the largest first. */
export const largest = (line, most) =>
  [...line.keys()]
    .filter((i) => line[i] !== null)
    .sort((a, b) => Math.abs(line[b]) - Math.abs(line[a]))
    .slice(0, most);

/** The columns to name under a wide map: the first, and the first at or after multiples of a round number. */
export function ticks(positions, most) {
  if (!positions.length) return [];
  const span = positions.at(-1) - positions[0] + 1;
  let step = 1;
  for (const unit of [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]) if ((step = unit) * most >= span) break;
  return positions.map((p, i) => i).filter((i) => !i || Math.floor(positions[i] / step) > Math.floor(positions[i - 1] / step));
}

/** A table on a canvas: a rectangle per number, numbers where there is room, a frame around the chosen one. */
export function drawMap(canvas, grid, cell, height) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  const [rows, columns] = [grid.values.length, grid.columns.length];
  canvas.width = Math.max(columns, Math.round(width * ratio));
  canvas.height = Math.round(rows * height * ratio);
  const pen = canvas.getContext("2d");
  const edge = (i) => Math.round((i * canvas.width) / columns);
  const gap = canvas.width / columns > 6 * ratio ? 1 : 0;
  const roomy = canvas.width / columns >= 34 * ratio && height >= 16;
  pen.font = `${10 * ratio}px system-ui, sans-serif`;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  grid.values.forEach((line, row) => {
    const [top, bottom] = [row, row + 1].map((y) => Math.round(y * height * ratio));
    line.forEach((value, i) => {
      const rgb = shade(value, endOf(grid, row));
      pen.fillStyle = css(rgb);
      pen.fillRect(edge(i), top, Math.max(1, edge(i + 1) - edge(i) - gap), bottom - top - (height > 8 ? 1 : 0));
      if (roomy && value !== null && Math.abs(value) >= 0.005 * endOf(grid, row)) {
        pen.fillStyle = ink(rgb);
        // A mark beside the colour: minus is said in words too.
        pen.fillText(number(value), (edge(i) + edge(i + 1)) / 2, (top + bottom) / 2);
      }
    });
  });
  if (cell && cell.row < rows && cell.column < columns) {
    const [left, right] = [edge(cell.column), edge(cell.column + 1)];
    pen.lineWidth = 2 * ratio;
    pen.strokeStyle = "#e69f00";
    const wide = Math.max(right - left, 6 * ratio);
    pen.strokeRect((left + right - wide) / 2 + ratio, cell.row * height * ratio + ratio, wide - 2 * ratio, (height - 2) * ratio);
  }
}

/** The place of a table under a pointer. */
export function placeAt(canvas, grid, event) {
  const box = canvas.getBoundingClientRect();
  const part = (at, size, count) => Math.min(count - 1, Math.max(0, Math.floor((at / size) * count)));
  return {
    row: part(event.clientY - box.top, box.height, grid.values.length),
    column: part(event.clientX - box.left, box.width, grid.columns.length),
  };
}

const escaped = (text) =>
  text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`).replace(/[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]/g, "\ufffd");

/** A table as SVG: a rectangle per number with its words, rows named at the left, columns below. */
export function svg(grid, title) {
  const [w, h, left] = [Math.max(4, Math.min(28, 1200 / grid.columns.length)), 18, 190];
  const [width, height] = [left + w * grid.columns.length + 20, 50 + h * grid.rows.length + 110];
  const named_ = w >= 10 ? [...grid.columns.keys()] : ticks(grid.positions, 12);
  const text = (x, y, said, more = "") => `<text x="${x}" y="${y}" ${more}>${escaped(said)}</text>`;
  const cells = grid.values.flatMap((line, row) =>
    line.map((value, i) => {
      const said = `${grid.rows[row]} ${named(grid.columns[i])}${grid.positions.length ? ` at ${grid.positions[i]}` : ""}: ${number(value)}`;
      const box = `x="${left + i * w}" y="${40 + row * h}" width="${w}" height="${h}"`;
      return `<rect ${box} fill="${css(shade(value, endOf(grid, row)))}"><title>${escaped(said)}</title></rect>`;
    }),
  );
  const rows = grid.rows.map((row, i) =>
    text(left - 6, 40 + i * h + 13, grid.ends.length ? `${row} [${number(grid.ends[i])}]` : row, 'text-anchor="end"'),
  );
  const below = 46 + h * grid.rows.length;
  const columns = named_.map((i) => text(0, 0, visible(grid.columns[i], 14), `transform="translate(${left + i * w + 4},${below}) rotate(60)"`));
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="system-ui,sans-serif" font-size="11">` +
    `<rect width="${width}" height="${height}" fill="#fff"/>${text(6, 18, title, 'font-size="13"')}` +
    `${text(6, 33, `${grid.unit}${grid.ends.length ? "; each row on its own scale: its end is in brackets" : `; full colour at ${number(grid.largest)}`}`)}` +
    `${cells.join("")}${rows.join("")}${columns.join("")}</svg>\n`
  );
}

/** Hand a file to the person. */
export function download(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
