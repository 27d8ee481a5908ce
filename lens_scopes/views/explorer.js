// What the explorers of Scores and of a Flow share: elements, numbers, colours, the address, files. At the end they start.
const QUIET = 0.05; // below this share of the scale's end a token is plain text, as in the static views
const EDGE = "#e69f00"; // around what is chosen

function add(parent, tag, text, className) {
  const made = parent.appendChild(document.createElement(tag));
  if (text !== undefined) made.textContent = text; // never innerHTML: tokens are text
  if (className) made.className = className;
  return made;
}

// Words around tokens: those of a right-to-left script are isolated, or they would reorder quotes and numbers.
function prose(parent, text) {
  const right = "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]+";
  const words = new RegExp("(" + right + "(?: +" + right + ")*)", "u");
  text.split(words).forEach((part, i) => (i % 2 ? add(parent, "bdi", part) : parent.append(part)));
  return parent;
}

function number(value, digits = 3) {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const text = value.toPrecision(digits);
  return text.includes("e") || text.includes(".") ? String(Number(text)) : text;
}

const percent = (value) => (value === null ? "–" : number(100 * value) + " %");

// What packing.py packed: the numbers in order, each exactly as it was.
function unpacked({ bytes, wide }) {
  const raw = Uint8Array.from(atob(bytes), (one) => one.charCodeAt(0));
  return wide ? new Float64Array(raw.buffer) : new Float32Array(raw.buffer);
}

// Background and ink of a value on the scale 0..end (or -end..end), as in markup.py.
function colour(value, end) {
  const low = [247, 251, 255], high = value < 0 ? [179, 88, 6] : [8, 69, 148];
  const at = end ? Math.min(1, Math.abs(value) / end) : 0;
  const rgb = Number.isFinite(value) ? low.map((l, i) => Math.round(l + (high[i] - l) * at)) : [158, 158, 158];
  const linear = rgb.map((c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  const bright = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179;
  return ["rgb(" + rgb.join(",") + ")", bright ? "#000" : "#fff"];
}

function paint(element, value, end) {
  [element.style.background, element.style.color] = colour(value, end);
}

// The colour scale with its numbers.
function legend(parent, end, signed, text) {
  add(parent, "span", signed ? number(-end) : "0");
  const swatches = add(parent, "span", undefined, "lens-swatches");
  for (let i = 0; i < 9; i++) add(swatches, "i").style.background = colour(signed ? (end * (i - 4)) / 4 : (end * i) / 8, end)[0];
  add(parent, "span", number(end) + " " + text);
}

// What is chosen stands in the address, after "#": each explorer of a page has fields of its own, "name.field=value".
const addressed = () => new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");

function chosenIn(id) {
  const own = [...addressed()].filter(([key]) => key.startsWith(id + "."));
  return Object.fromEntries(own.map(([key, value]) => [key.slice(id.length + 1), value]));
}

function keepChosen(id, fields, replace) {
  if (window !== window.top) return; // the address, and the way back, are the notebook's
  const all = addressed();
  for (const key of [...all.keys()]) if (key.startsWith(id + ".")) all.delete(key);
  for (const [field, value] of Object.entries(fields)) all.set(id + "." + field, value);
  const address = location.href.split("#")[0] + "#" + all;
  if (address === location.href) return;
  try {
    history[replace ? "replaceState" : "pushState"](null, "", address);
  } catch {
    // Some browsers refuse more than so many changes at a time; what is shown does not hang on it.
  }
}

// Back, forward, and an address that somebody writes. One without fields is a link inside the page, and changes nothing.
function whenAddressed(id, choose) {
  addEventListener("hashchange", () => {
    if (location.hash.length < 2 || location.hash.includes("=")) choose(chosenIn(id));
  });
}

// Files. Names are made of the letters and digits of what is shown.
function save(words, ending, content) {
  const link = document.createElement("a");
  const parts = words.map((word) => String(word).replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40).replace(/^-|-$/g, ""));
  link.download = ["lens-scopes", ...parts.filter(Boolean)].join("_") + "." + ending;
  link.href = URL.createObjectURL(content);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Rows of cells as CSV: texts in quotes, numbers with all their digits, and nothing where there is no number.
function csv(header, rows) {
  const cell = (value) => {
    if (value === null || value === undefined || Number.isNaN(value)) return "";
    if (typeof value === "number") return Number.isFinite(value) ? String(value) : value < 0 ? "-inf" : "inf";
    return '"' + value.replaceAll('"', '""') + '"';
  };
  return [header, ...rows].map((row) => row.map(cell).join(",") + "\n").join("");
}

// The buttons under an explorer. `shown()` says what is shown: words for a file's name, a header and rows, a picture.
function buttons(root, shown) {
  const line = add(root, "div", undefined, "lens-choices");
  const button = (name, does) => {
    const made = add(line, "button", name);
    made.type = "button";
    made.title = "save what is shown as " + name;
    made.addEventListener("click", () => does(shown()));
  };
  button("SVG", ({ words, picture }) => save(words, "svg", new Blob([picture()], { type: "image/svg+xml" })));
  button("PNG", ({ words, picture }) => {
    const image = new Image();
    image.onload = () => {
      const canvas = document.createElement("canvas");
      const times = Math.min(2, 16000 / Math.max(image.width, image.height));
      [canvas.width, canvas.height] = [image.width, image.height].map((size) => Math.ceil(size * times));
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      canvas.toBlob((made) => save(words, "png", made), "image/png");
    };
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(picture());
  });
  button("CSV", ({ words, header, rows }) => save(words, "csv", new Blob([csv(header, rows())], { type: "text/csv" })));
}

// A picture in the making, from top to bottom: SVG with its words as text.
class Picture {
  constructor(width) {
    this.width = width;
    this.y = 12;
    this.root = document.createElementNS("http:\/\/www.w3.org/2000/svg", "svg"); // its name; nothing is fetched
    this.root.setAttribute("font-family", "system-ui,sans-serif");
    this.ground = this.put("rect", { width: "100%", height: "100%", fill: "#fff" });
    this.pen = document.createElement("canvas").getContext("2d");
  }

  put(name, attributes, text) {
    const made = this.root.appendChild(document.createElementNS(this.root.namespaceURI, name));
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  measure(text, size, family = "system-ui,sans-serif") {
    this.pen.font = size + "px " + family;
    return this.pen.measureText(text).width;
  }

  // Words from the left to the right edge, in as many lines as they need.
  write(text, size = 12, weight = "normal") {
    let line = "";
    const end = () => {
      this.y += size * 1.4;
      this.put("text", { x: 12, y: this.y, "font-size": size, "font-weight": weight, fill: "#111" }, line.trimEnd());
      line = "";
    };
    for (const word of text.split(/(?<= )/)) {
      if (line && 12 + this.measure(line + word, size) > this.width - 12) end();
      line += word;
    }
    if (line.trim()) end();
  }

  box(x, y, width, height, value, end, title) {
    const made = this.put("rect", { x, y, width, height, fill: colour(value, end)[0] });
    if (title) made.appendChild(document.createElementNS(this.root.namespaceURI, "title")).textContent = title;
    return made;
  }

  scale(end, signed, text) {
    this.y += 8;
    const low = signed ? number(-end) : "0";
    const left = 18 + this.measure(low, 11);
    this.put("text", { x: 12, y: this.y + 9, "font-size": 11, fill: "#111" }, low);
    for (let i = 0; i < 9; i++) this.box(left + 16 * i, this.y, 16, 10, signed ? (end * (i - 4)) / 4 : (end * i) / 8, end);
    this.put("text", { x: left + 150, y: this.y + 9, "font-size": 11, fill: "#111" }, number(end) + " " + text);
    this.y += 14;
  }

  text() {
    const height = Math.ceil(this.y + 16);
    const size = { width: this.width, height, viewBox: "0 0 " + this.width + " " + height };
    for (const [key, value] of Object.entries(size)) this.root.setAttribute(key, value);
    return new XMLSerializer().serializeToString(this.root) + "\n";
  }
}

for (const data of JSON.parse(document.getElementById("lens-explorers").textContent)) {
  const explore = data.kind === "flow" ? exploreFlow : exploreScores;
  explore(data, document.getElementById(data.id));
}
