// What several sections of the page are made of: buttons and fields, a map, its scale, a scatter.
import { html, nothing } from "./lit-html.js";
import { drawMap, named, number, painted, placeAt, ticks } from "./draw.js";

export const section = (id, title, body) =>
  html`<section id=${id} aria-labelledby=${`${id}-title`}><h2 id=${`${id}-title`}>${title}</h2>${body}</section>`;

export const button = (text, click, { off = false, pressed = null, title = nothing } = {}) =>
  html`<button type="button" ?disabled=${off} title=${title} aria-pressed=${pressed === null ? nothing : String(pressed)} @click=${click}>${text}</button>`;

export const select = (label, value, options, change) => html`
  <label>${label}
    <select aria-label=${label} @change=${(event) => change(event.target.value)}>
      ${options.map(([key, text]) => html`<option value=${key} ?selected=${key === String(value)} .selected=${key === String(value)}>${text}</option>`)}
    </select>
  </label>
`;

export const field = (label, value, min, max, step, change) => html`
  <label>${label}
    <input type="number" aria-label=${label} min=${min} max=${max} step=${step} .value=${String(value)}
      @change=${(event) => event.target.reportValidity() && change(Number(event.target.value))}>
  </label>
`;

/** Moves the focus among buttons, of which one is in the order of tabs. */
export function roving(event) {
  const all = [...event.currentTarget.querySelectorAll("button")];
  const at = all.indexOf(document.activeElement);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined || at < 0) return;
  event.preventDefault();
  all[Math.min(all.length - 1, Math.max(0, to))].focus();
}

/** A table as a map: one stop in the order of tabs, arrows move, Enter acts. */
export function mapOf(grid, cell, { label, choose, enter, one = false, id }) {
  const shown = one ? { ...grid, ends: [], largest: Math.max(...grid.ends, 1e-30) } : grid;
  const rows = grid.rows.length;
  const height = rows <= 8 ? 26 : rows <= 20 ? 20 : 14;
  const move = (event) => {
    const [last, end] = [grid.columns.length - 1, rows - 1];
    const { row, column } = cell ?? { row: 0, column: 0 };
    const to = {
      ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1], ArrowUp: [row - 1, column], ArrowDown: [row + 1, column],
      Home: [row, 0], End: [row, last], PageUp: [row, column - 10], PageDown: [row, column + 10],
    }[event.key];
    if (event.key === "Enter") {
      event.preventDefault();
      enter();
    }
    if (!to) return;
    event.preventDefault();
    choose({ row: Math.min(end, Math.max(0, to[0])), column: Math.min(last, Math.max(0, to[1])) });
  };
  const click = (event) => choose(placeAt(event.currentTarget, grid, event));
  queueMicrotask(() => {
    const canvas = document.querySelector(`#${id} canvas`);
    if (canvas) drawMap(canvas, shown, cell, height);
  });
  const ends = one || !grid.ends.length ? null : grid.ends;
  return html`
    <div class="map" id=${id}>
      <div class="rows" .style=${`line-height:${height}px`} aria-hidden="true">
        ${grid.rows.map((row, i) => html`<div class=${cell?.row === i ? "here" : ""} .style=${`height:${height}px`}>${row}${ends ? html` <small>[${number(ends[i])}]</small>` : nothing}</div>`)}
      </div>
      <div class="drawing">
        <canvas tabindex="0" role="application" aria-roledescription="map" aria-label=${`${label}: ${rows} rows by ${grid.columns.length} columns; arrow keys move`}
          aria-describedby=${`${id}-scale`} .style=${`height:${rows * height}px`} @keydown=${move} @click=${click}></canvas>
        ${below(grid, cell)}
      </div>
    </div>
    ${legend(grid, ends, id, one)}
  `;
}

function below(grid, cell) {
  const count = grid.columns.length;
  const room = (innerWidth - 220) / count;
  if (room >= 15) {
    return html`<div class="columns" aria-hidden="true" .style=${`grid-template-columns:repeat(${count},minmax(0,1fr))`}>
      ${grid.columns.map((token, i) => html`<span class=${cell?.column === i ? "here" : ""}><bdi>${named(token, 14)}</bdi></span>`)}</div>`;
  }
  const marks = grid.positions.length ? ticks(grid.positions, Math.max(2, Math.floor(innerWidth / 130))) : [];
  return html`<div class="ticks" aria-hidden="true">
    ${marks.map((i) => html`<span .style=${`left:${(100 * i) / count}%`}>${grid.positions[i]} <bdi>${named(grid.columns[i], 10)}</bdi></span>`)}</div>`;
}

function legend(grid, ends, id, one) {
  const end = one ? Math.max(...grid.ends, 1e-30) : grid.largest;
  const steps = Array.from({ length: 9 }, (_, i) => (grid.signed ? (i - 4) / 4 : i / 8));
  const [low, high] = ends ? [grid.signed ? "−[…]" : "0", "[…]"] : [grid.signed ? `−${number(end)}` : "0", number(end)];
  return html`<p class="legend" id=${`${id}-scale`}>
    ${low} ${steps.map((step) => html`<span class="step" .style=${painted(step, 1)}></span>`)} ${high}
    <span class="quiet">${grid.unit}${ends ? "; each row on its own scale, its end in brackets" : ""}${grid.values.some((line) => line.includes(null)) ? "; grey: not measured" : ""}${grid.note ? `; ${grid.note}` : ""}</span></p>`;
}

export const signed = (value) => `${value > 0 ? "+" : ""}${number(value)}`;

export function scatter(pairs) {
  const end = Math.max(...pairs.flat().map(Math.abs)) || 1;
  const at = (value) => 100 + (88 * value) / end;
  return html`<svg class="scatter" viewBox="0 0 200 216" role="img" aria-label=${`measured against predicted, ${pairs.length} places, both to ${number(end)}`}>
    <path class="axis" d="M12 100H188M100 12V188"></path><path class="equal" d="M12 188L188 12"></path>
    ${pairs.map(([p, m]) => html`<svg x=${at(p) - 4} y=${196 - at(m)} width="8" height="8" viewBox="0 0 8 8"><circle class="dot" cx="4" cy="4" r="3.5"></circle></svg>`)}
    <text x="188" y="112" text-anchor="end">predicted ${number(end)}</text><text x="104" y="20">measured</text><text x="12" y="208">line: measured = predicted</text>
  </svg>`;
}
