"use strict";
const BLOCK = 50, QUIET = 0.05, SINK = 3, ROUNDING = 1e-5; // BLOCK, SINK and ROUNDING as in the static views
// Click a token: where does its influence sit at each depth, and through which heads and MLPs does it go?
for (const data of JSON.parse(document.getElementById("lens-explorers").textContent)) {
  const root = document.getElementById(data.id);
  const add = (parent, tag, text, className) => {
    const made = parent.appendChild(document.createElement(tag));
    if (text !== undefined) made.textContent = text; // never innerHTML: tokens are text
    if (className) made.className = className;
    return made;
  };
  const number = (value) => {
    if (value === 0) return "0";
    const text = value.toPrecision(3);
    return text.includes("e") || text.includes(".") ? String(Number(text)) : text;
  };
  const percent = (value) => (value === null ? "–" : number(100 * value) + " %");
  const colour = (share) => {
    const low = [247, 251, 255], high = share < 0 ? [179, 88, 6] : [8, 69, 148];
    const at = Math.min(1, Math.abs(share));
    const rgb = low.map((l, i) => Math.round(l + (high[i] - l) * at));
    const dark = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] <= 140;
    return ["rgb(" + rgb.join(",") + ")", dark ? "#fff" : "#000"];
  };
  const paint = (element, value, largest) => {
    [element.style.background, element.style.color] = colour(largest ? value / largest : 0);
  };
  // The ends of the colour scales: one for all, or of each row its own, which position 0 and the last one do not set
  // where they exceed the others by far.
  const scales = (values, each) => {
    const end = (line) => {
      const sizes = line.map(Math.abs), last = sizes.length - 1;
      const rest = Math.max(0, ...sizes.slice(1, last));
      const off = (size) => size > SINK * rest && rest > ROUNDING * size;
      return Math.max(rest, ...[sizes[0], sizes[last]].filter((size) => !off(size)));
    };
    if (!each) return values.map(() => largestOf(values));
    const ends = values.map(end), floor = ROUNDING * Math.max(...ends);
    return ends.map((one) => Math.max(one, floor));
  };
  const largestOf = (rows) => Math.max(0, ...rows.flat().map(Math.abs));

  // The tokens: a button for each source that has a row.
  const strip = add(root, "div", undefined, "lens-tokens");
  const row = new Map(data.sources.map((position, i) => [position, i]));
  const ends = data.sources.map((position, i) => (position === 0 ? 0 : Math.abs(data.total[i])));
  const end = Math.max(...ends) || Math.max(...data.total.map(Math.abs));
  const buttons = data.tokens.map((token, position) => {
    const button = add(strip, "button", token);
    button.type = "button";
    const i = row.get(position);
    if (i === undefined) button.disabled = true;
    else {
      paint(button, data.total[i], end);
      button.title = "position " + position + ": " + number(data.total[i]);
      button.addEventListener("click", () => show(position));
    }
    return button;
  });
  strip.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const at = data.sources.indexOf(current) + step;
    if (at < 0 || at >= data.sources.length) return;
    event.preventDefault();
    show(data.sources[at]);
    buttons[current].focus();
  });

  // Two tables, made once and painted on each click.
  const said = add(root, "p", "", "lens-said");
  said.setAttribute("aria-live", "polite");
  const maps = add(root, "div", undefined, "lens-maps");
  const table = (title, columns, rows, upright) => {
    const box = add(maps, "div", undefined, "lens-map");
    add(box, "div", title, "lens-heading");
    const quiet = add(box, "div", "", "note");
    const cells = rows.map(() => []), labels = rows.map(() => []);
    // Blocks that fit a page, one below the other.
    const blocks = [];
    for (let start = 0; start < columns.length; start += BLOCK) {
      const made = add(add(box, "div", undefined, "lens-scroll"), "table");
      const names = columns.slice(start, start + BLOCK);
      const head = add(made.createTHead(), "tr");
      add(head, "th");
      for (const name of names) add(add(head, "th"), "div", name, upright ? "lens-upright" : "");
      const body = made.createTBody();
      rows.forEach((name, i) => {
        const line = add(body, "tr");
        labels[i].push(add(line, "th", name));
        for (const _ of names) cells[i].push(add(line, "td"));
      });
      blocks.push([made, start]);
    }
    const legend = add(box, "div", "", "note");
    const each = upright && columns.length > BLOCK;
    return (values, whole, past) => {
      const ends = scales(values, each), largest = Math.max(...ends);
      rows.forEach((name, i) => labels[i].forEach((label) => {
        label.textContent = name + (past ? " (past its heads " + percent(whole ? past[i] / whole : null) + ")" : "")
          + (each ? " [" + percent(whole ? Math.abs(ends[i] / whole) : null) + "]" : "");
      }));
      values.forEach((line, i) => line.forEach((value, j) => {
        const cell = cells[i][j];
        const share = whole ? value / whole : null;
        paint(cell, value, ends[i]);
        cell.title = rows[i] + ", " + columns[j] + (upright ? " at " + j : "") + ": " + number(value) + ", " + percent(share);
        if (!upright && share !== null) cell.textContent = Math.abs(value) < 0.005 * largest ? "" : Math.round(100 * share);
      }));
      // Blocks in which nothing would be seen are hidden, and said.
      let hidden = 0;
      for (const [made, start] of blocks) {
        made.hidden = blocks.length > 1 && values.every((line, i) =>
          line.slice(start, start + BLOCK).every((value) => Math.abs(value) <= QUIET * ends[i]));
        if (made.hidden) hidden += Math.min(BLOCK, columns.length - start);
      }
      quiet.textContent = hidden ? hidden + " columns are not shown: all below " + 100 * QUIET + " % of " + (each ? "their rows' scales" : "the scale") : "";
      if (each) legend.textContent = "each row on its own scale: full colour at ± what is in its brackets; orange takes away";
      else legend.textContent = "full colour at ±" + number(largest) + " (" + percent(whole ? largest / whole : null) + "); orange takes away";
    };
  };
  const heads = table("through which heads and MLPs: % of the token's score", data.branches, data.layers, false);
  const stream = table("where it sits at each depth", data.tokens.slice(0, data.end), data.depths, true);

  let current = data.sources[0];
  const show = (position) => {
    const i = row.get(position);
    current = position;
    buttons.forEach((button, at) => button.setAttribute("aria-pressed", at === position));
    heads(data.heads[i], data.total[i], data.skip[i]);
    stream(data.stream[i], data.total[i]);
    const strongest = data.heads[i]
      .flatMap((line, layer) => line.map((value, branch) => [value, layer + "." + data.branches[branch]]))
      .sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 3)
      .map(([value, name]) => name + " " + percent(data.total[i] ? value / data.total[i] : null));
    said.textContent = "position " + position + ", “";
    add(said, "bdi", data.tokens[position]); // isolated: a right-to-left one would reorder what follows
    said.append("”: " + number(data.total[i]) + " (" + data.units
      + "), " + percent(data.whole ? data.total[i] / data.whole : null) + " of the total; most goes through " + strongest.join(", "));
  };
  // At first the strongest token but for the attention sink and the one at the prediction, which mostly stays where it is.
  const telling = ends.map((value, i) => (data.sources[i] === data.end - 1 ? 0 : value));
  show(data.sources[telling.indexOf(Math.max(...telling))]);
}
