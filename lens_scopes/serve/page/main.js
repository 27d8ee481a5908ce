// What the page knows, what can be done on it, and how it stands in its address.
import { render } from "./lit-html.js";
import { ask, model } from "./net.js";
import { download, named, number, setColours, svg } from "./draw.js";
import { page } from "./views.js";

/** What stands in the address, and is enough to come back to. */
const asked = {
  text: "", // of the prompt
  ids: null, // of the prompt and what the model added: then exactly these run
  start: null, // where that begins
  position: -1, // whose next token is explained; or several, as one
  target: null, // an id; null: the model's first choice
  versus: null,
  kind: "semantic",
  passes: 8,
  sites: null,
  along: null,
  level: "token",
  first: "show",
  table: 0, // of several: heads of which layer
  cell: null, // {row, column}
  one: false, // all rows on one scale
  clean: "", // the second prompt
  cuts: [], // what was cut: the questions
};
/** What was answered, and what is going on. */
const state = {
  ...asked, model: null, tokens: null, score: null, flow: null, flowCell: null, edges: null, pair: null,
  pairCell: null, results: [], draft: null, count: 16, temperature: 0, seed: 0, largest: 16, busy: null, error: null, note: null,
};

let leave = null; // the request that is running

function draw() {
  render(page(state, act), document.getElementById("page"));
  document.title = state.tokens ? `lens_scopes: ${promptText().slice(0, 40)}` : "lens_scopes";
}

const promptText = () => state.tokens?.tokens.join("") ?? state.text;
const prompt = () => state.ids ?? state.text;
const scope = () => {
  if (Array.isArray(state.position)) return { kind: "continuation" };
  if (state.kind === "semantic") return { kind: "semantic", target: state.target, versus: state.versus };
  return state.kind === "fisher" ? { kind: "fisher", passes: state.passes } : { kind: state.kind };
};
const question = () => ({ prompt: prompt(), scope: scope(), position: state.position });
const scoreAsk = () => ({ ...question(), sites: state.sites, along: state.along, level: state.level, first: state.first });
const pairAsk = () => ({
  clean: state.clean, corrupted: prompt(), scope: scope(), position: state.position, sites: state.sites,
});

/** Say something to who listens to the page. */
function say(text) {
  document.getElementById("said").textContent = text;
}

/** Do something that takes a while: only the last one asked for goes on. */
async function doing(what, steps) {
  leave?.abort();
  const mine = (leave = new AbortController());
  const note = state.busy ? `${state.busy.what}: stopped` : null;
  Object.assign(state, { busy: { what }, error: null, note });
  draw();
  const go = (verb, fields) =>
    ask(verb, fields, (line) => {
      if (mine !== leave) return;
      state.busy = { what, ...state.busy, ...line };
      draw();
    }, mine.signal);
  try {
    await steps(go);
  } catch (error) {
    if (mine !== leave || error.name === "AbortError") return;
    state.error = error.message;
    say(`${what}: ${error.message}`);
  } finally {
    if (mine === leave) {
      state.busy = leave = null;
      remember();
      draw();
    }
  }
}

async function score(go) {
  Object.assign(state, { flow: null, edges: null, pair: null });
  state.score = await go("score", scoreAsk());
  const grid = act.grid();
  const known = state.cell && state.cell.row < grid.values.length && state.cell.column < grid.columns.length;
  if (!known) {
    // Position 0 is often a sink, and never says why.
    const line = grid.values[0].map((value, i) => (grid.positions[i] ? Math.abs(value ?? 0) : 0));
    state.cell = { row: 0, column: line.indexOf(Math.max(...line)) };
  }
  say(`${state.score.title}: ${grid.values.length} rows by ${grid.columns.length} tokens`);
}

/** Ask again about another token, with the scope as it is. */
const explain = (what, change) => {
  Object.assign(state, change);
  return doing(what, score);
};

export const act = {
  set(change) {
    Object.assign(state, change);
    remember();
    draw();
  },
  grid: () => state.score?.grids[Math.min(state.table, state.score.grids.length - 1)],
  stop() {
    leave?.abort();
    Object.assign(state, { busy: null, note: "stopped" });
    leave = null;
    draw();
  },
  run(text) {
    Object.assign(state, { text, ids: null, start: null, position: -1, target: null, versus: null, cell: null, cuts: [], results: [] });
    return doing("running", async (go) => {
      state.score = null;
      state.tokens = await go("tokens", { prompt: text });
      draw();
      await score(go);
    });
  },
  generate() {
    return doing("generating", async (go) => {
      const found = await go("generate", { prompt: prompt(), n: state.count, temperature: state.temperature, seed: state.seed });
      Object.assign(state, { ids: found.ids, start: state.start ?? found.start, cell: null, cuts: [], results: [] });
      Object.assign(state, { position: found.start - 1, target: found.ids[found.start], versus: null });
      state.tokens = await go("tokens", { prompt: found.ids, position: state.position });
      await score(go);
    });
  },
  /** Token i was predicted after position i - 1. */
  token(i, extend) {
    if (!i) {
      state.note = "nothing predicts the first token of a text";
      say(state.note);
      return draw();
    }
    const at = Array.isArray(state.position) ? state.position[0] : state.position;
    if (extend && at >= 0) {
      const [from, to] = [Math.min(at, i - 1), Math.max(at, i - 1)];
      const position = Array.from({ length: to - from + 1 }, (_, n) => from + n);
      return explain(`explaining ${position.length} tokens`, { position, target: null, versus: null });
    }
    Object.assign(state, { position: i - 1, target: state.tokens.ids[i], versus: null });
    return doing(`explaining ${named(state.tokens.tokens[i])}`, async (go) => {
      state.tokens = await go("tokens", { prompt: prompt(), position: i - 1 });
      await score(go);
    });
  },
  next(id, other) {
    if (other) return explain("held against", { versus: state.versus === id ? null : id, kind: "semantic" });
    return explain("explaining", { position: state.tokens.position, target: id, versus: null, kind: "semantic" });
  },
  scope: (change) => explain("scoring", { cell: null, table: 0, ...change }),
  choose(cell) {
    state.cell = cell;
    remember();
    draw();
    say(act.told());
  },
  /** The chosen place in words. */
  told() {
    const [grid, { row, column }] = [act.grid(), state.cell];
    const at = grid.positions.length ? ` at ${grid.positions[column]}` : "";
    return `${named(grid.columns[column])}${at} in ${grid.title} ${grid.rows[row]}: ${number(grid.values[row][column])}`;
  },
  /** The question that cuts the chosen place. */
  cutAsk(by) {
    const grid = act.grid();
    const { row, column } = state.cell;
    const place = state.score.heads ? { site: state.table, head: row } : { site: row };
    return { ...question(), ...place, pos: grid.positions[column], sites: state.sites, by, clean: by === "patch" ? state.clean : null };
  },
  cut: (by) => doing("cutting", (go) => cut(go, act.cutAsk(by))),
  cutHead(by) {
    const { row, column } = state.flowCell;
    const whole = { site: row, head: column, pos: null, sites: "z", by, clean: by === "patch" ? state.clean : null };
    return doing("cutting", (go) => cut(go, { ...question(), ...whole }));
  },
  undo(n) {
    act.set({ cuts: state.cuts.filter((_, i) => i !== n), results: state.results.filter((_, i) => i !== n) });
  },
  flow: () =>
    doing("following influence", async (go) => {
      state.flow = await go("flow", question());
      Object.assign(state, { flowCell: { row: 0, column: 0 }, edges: null });
    }),
  edges: () =>
    doing("reading a head's edges", async (go) => {
      const { row, column } = state.flowCell;
      if (column >= state.model.heads) throw new Error("an MLP reads its own position alone; choose a head");
      state.edges = await go("edges", { ...question(), layer: row, head: column });
    }),
  predict: () =>
    doing("predicting patches", async (go) => {
      state.pair = await go("predict", pairAsk());
      state.pairCell = { row: 0, column: 0 };
    }),
  measure: () =>
    doing("measuring patches", async (go) => {
      state.pair = await go("measure", { ...pairAsk(), largest: state.largest });
    }),
  async align() {
    await doing("reading the second prompt", async (go) => {
      const second = await go("tokens", { prompt: state.clean });
      const [one, other] = [second.tokens, state.tokens.tokens];
      if (one.length !== other.length) throw new Error(`the second prompt has ${one.length} tokens, the first ${other.length}: patching needs prompts of one length`);
      state.aligned = one.map((token, i) => [token, other[i]]);
    });
  },
  svg: () => download("lens_scopes.svg", svg(act.grid(), `${state.score.title}: ${promptText().slice(-60)}`), "image/svg+xml"),
  png() {
    document.querySelector("#map canvas").toBlob((blob) => download("lens_scopes.png", blob));
  },
  file: (kind) =>
    doing("writing", async (go) => {
      const found = await go("export", { kind, asks: kind === "csv" ? [["score", scoreAsk()]] : everything(kind) });
      download(found.name, found.text, "text/plain");
    }),
  async link() {
    await navigator.clipboard?.writeText(location.href).catch(() => null);
    state.note = `the address bar has the link (${location.href.length} characters)`;
    draw();
  },
};

async function cut(go, fields) {
  const found = await go("cut", fields);
  state.cuts = [...state.cuts, fields];
  state.results = [...state.results, found];
  const ratio = found.predicted ? `, ratio ${number(found.measured / found.predicted)}` : "";
  say(`predicted ${number(found.predicted)}, measured ${number(found.measured)}${ratio}`);
}

/** All that is on the page, as questions. */
function everything(kind) {
  const asks = [["score", scoreAsk()]];
  if (kind === "python") asks.unshift(["tokens", { prompt: prompt(), position: state.tokens.position }]);
  if (state.flow) asks.push(["flow", question()]);
  if (state.edges) asks.push(["edges", { ...question(), layer: state.edges.head[0], head: state.edges.head[1] }]);
  if (state.pair) asks.push(state.pair.pairs ? ["measure", { ...pairAsk(), largest: state.largest }] : ["predict", pairAsk()]);
  return [...asks, ...state.cuts.map((fields) => ["cut", fields])];
}

/** The address says what is asked; nothing of it is ever sent to the server as an address. */
function remember() {
  if (!state.tokens) return;
  const kept = Object.fromEntries(Object.keys(asked).map((key) => [key, state[key]]));
  const changed = Object.fromEntries(Object.entries(kept).filter(([key, v]) => JSON.stringify(v) !== JSON.stringify(asked[key])));
  const text = `#${encodeURIComponent(JSON.stringify({ v: 1, model: state.model.digest, ...changed }))}`;
  history.replaceState(null, "", text.length <= 8000 ? text : "#");
  state.long = text.length > 8000;
}

/** Come back to what an address asks. */
async function reopen() {
  let given;
  try {
    given = JSON.parse(decodeURIComponent(location.hash.slice(1)));
  } catch {
    return;
  }
  if (given.v !== 1) return;
  for (const key of Object.keys(asked)) if (key in given) state[key] = given[key];
  const cuts = state.cuts;
  Object.assign(state, { cuts: [], results: [], draft: null });
  const note = given.model !== state.model.digest ? "this address was made with another model: its numbers are not these" : null;
  await doing("reopening", async (go) => {
    const position = Array.isArray(state.position) ? state.position[0] : state.position;
    state.tokens = await go("tokens", { prompt: prompt(), position });
    await score(go);
    for (const fields of cuts) await cut(go, fields);
  });
  act.set({ note });
}

state.model = await model();
setColours(state.model.colours);
draw();
addEventListener("resize", draw);
addEventListener("hashchange", reopen);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
if (location.hash.length > 1) await reopen();
