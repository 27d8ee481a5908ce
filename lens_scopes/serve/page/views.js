// What the page looks like: from what it knows to templates. Every text is a text node; styles are set as properties.
import { html, nothing } from "./lit-html.js";
import { endOf, largest, named, number, painted, percent, total, visible } from "./draw.js";
import { button, field, mapOf, roving, scatter, section, select, signed } from "./parts.js";

const KEYS = [
  ["Ctrl+Enter", "in the text: run"],
  ["← →", "in the text below it: move from token to token; Enter explains, Shift+Enter up to here as one"],
  ["arrows, Home, End, Page Up, Page Down", "on a map: move; Enter goes to the buttons that cut the place, or opens the head"],
  ["Alt+click or Alt+Enter", "on a token of the distribution: hold the explained token against it"],
  ["Escape", "stop what is running"],
];
const SCOPES = {
  semantic: "Semantic: one logit",
  fisher: "Fisher: the whole distribution",
  temperature: "Temperature: how sharp it is",
  entropy: "Entropy: how uncertain it is",
};
const SITES = {
  null: "residual stream",
  resid_pre: "before each block",
  resid_mid: "between attention and MLP",
  resid_post: "after each block",
  attn_out: "attention outputs",
  mlp_out: "MLP outputs",
  z: "heads (z)",
};
const BLOCKS = "▁▂▃▄▅▆▇█";

export function page(state, act) {
  return html`
    <div @keydown=${(event) => event.key === "Escape" && state.busy && act.stop()}>
      <header>
        <h1>lens_scopes</h1>
        <p class="quiet">
          ${state.model.name} · ${state.model.layers} layers of ${state.model.heads} heads · ${state.model.dtype} ·
          ${state.model.host} · ${state.tokens ? `${state.tokens.tokens.length} of ` : ""}${state.model.most_tokens} tokens
        </p>
      </header>
      <main>
        ${ask(state, act)} ${status(state, act)}
        ${state.tokens ? html`${tokens(state, act)} ${scopeBar(state, act)}` : nothing}
        ${state.score ? html`${map(state, act)} ${heads(state, act)} ${pair(state, act)} ${exports(state, act)}` : nothing}
        ${keys()}
      </main>
    </div>
  `;
}

function ask(state, act) {
  const run = () => act.run(document.getElementById("prompt").value);
  const submit = (event) => {
    event.preventDefault();
    run();
  };
  return section("ask", "Prompt", html`
    <form @submit=${submit} @keydown=${(event) => event.key === "Enter" && (event.ctrlKey || event.metaKey) && submit(event)}>
      <label class="unseen" for="prompt">Prompt</label>
      <textarea id="prompt" rows="3" maxlength="20000" required spellcheck="false" autofocus .value=${state.draft ?? state.text}
        @input=${(event) => (state.draft = event.target.value)} placeholder="Type a prompt"></textarea>
      <div class="bar">
        <button class="main">Run</button>
        ${state.tokens ? html`
          ${button("Generate", act.generate)}
          ${field("tokens", state.count, 1, state.model.most_new, 1, (count) => act.set({ count }))}
          ${field("temperature", state.temperature, 0, 10, "any", (temperature) => act.set({ temperature }))}
          ${field("seed", state.seed, 0, 2147483647, 1, (seed) => act.set({ seed }))}` : nothing}
      </div>
    </form>
  `);
}

function status(state, act) {
  const { busy } = state;
  const [done, of] = busy?.progress ?? [];
  return html`
    <div class="status" aria-busy=${busy ? "true" : "false"}>
      ${busy ? html`<span class="running">${busy.what}${busy.queued && !of ? `, behind ${busy.queued} others` : ""}${of ? `: ${done} of ${of}` : ""} …</span>
        ${of ? html`<progress max=${of} .value=${done} aria-label=${busy.what}></progress>` : nothing}
        ${button("Stop", act.stop)}` : nothing}
      ${state.error ? html`<p class="error" role="alert">${state.error}</p>` : nothing}
      ${state.note ? html`<p class="quiet">${state.note}</p>` : nothing}
      ${state.long ? html`<p class="quiet">The question is too long for an address; export Python to keep it.</p>` : nothing}
    </div>
  `;
}

function tokens(state, act) {
  const { tokens: all, next, position } = state.tokens;
  const at = Array.isArray(state.position) ? state.position : [state.position < 0 ? all.length - 1 : state.position];
  const explained = new Set(at.map((p) => p + 1));
  const now = at[0] + 1 < all.length ? at[0] + 1 : all.length - 1;
  const most = next[0].p;
  return section("tokens", "Click a token to see why it was predicted", html`
    <div class="beside">
      <div class="text" role="group" aria-label="tokens of the text" @keydown=${roving}>
        ${all.map((token, i) => html`<button type="button" class=${state.start !== null && i >= state.start ? "token added" : "token"}
            tabindex=${i === now ? 0 : -1} aria-pressed=${String(explained.has(i))} title=${`position ${i}`}
            aria-label=${`${named(token)}, position ${i}`}
            @click=${(event) => act.token(i, event.shiftKey)}><bdi>${visible(token, 40)}</bdi></button>${token.includes("\n") ? html`<br>` : nothing}`)}
      </div>
      <div class="next">
        <h3>next after ${position} <bdi>${named(all[position])}</bdi></h3>
        <ol aria-label="likeliest next tokens">
          ${next.map(({ id, text, p }) => html`<li>
            <button type="button" class="likely" aria-pressed=${String(state.target === id && !explained.has(-1))}
              title="explain it; Alt: hold the explained token against it" @click=${(event) => act.next(id, event.altKey)}>
              <span class="fill" .style=${`width:${Math.max(1, (100 * p) / most)}%`}></span>
              <bdi>${named(text)}</bdi> <span class="p">${percent(p)}</span>${state.versus === id ? html` <span class="p">versus</span>` : nothing}
            </button></li>`)}
        </ol>
      </div>
    </div>
  `);
}

function scopeBar(state, act) {
  const joint = Array.isArray(state.position);
  const off = (key) => state.model.sites.includes(key === "null" ? null : key);
  return section("scope", "What is asked", html`
    <div class="bar">
      ${joint ? html`<span>${state.position.length} tokens as one (Continuation)</span>` : select("scope", state.kind, Object.entries(SCOPES), (kind) => act.scope({ kind }))}
      ${!joint && state.kind === "fisher" ? field("passes", state.passes, 1, state.model.most_passes, 1, (passes) => act.scope({ passes })) : nothing}
      ${select("at", state.sites, Object.entries(SITES).filter(([key]) => off(key)), (key) => act.scope({ sites: key === "null" ? null : key }))}
      ${select("numbers", state.along, [["null", "norms"], ["activation", "× activation, signed"]], (key) => act.scope({ along: key === "null" ? null : key }))}
      ${select("by", state.level, state.model.levels.map((level) => [level, level]), (level) => act.scope({ level }))}
      ${select("position 0", state.first, [["show", "shown"], ["hide", "hidden"], ["share", "as a share"]], (first) => act.scope({ first }))}
    </div>
    <p>${targets(state)}</p>
  `);
}

function targets(state) {
  const each = (state.score?.targets ?? []).filter(Boolean);
  if (!each.length) return nothing;
  const one = (t) => html`<b><bdi>${named(t.text)}</bdi></b>${t.p === undefined ? nothing : ` (${percent(t.p)}, rank ${t.rank})`}`;
  const listed = each.slice(0, 6).map((t, i) => html`${i ? ", " : ""}${one(t)}${t.versus ? html` against ${one(t.versus)}` : nothing}`);
  return html`Explained: ${listed}${each.length > 6 ? ` and ${each.length - 6} more` : nothing}.`;
}

function map(state, act) {
  const grid = act.grid();
  const cell = state.cell && state.cell.row < grid.rows.length && state.cell.column < grid.columns.length ? state.cell : { row: 0, column: 0 };
  const { score } = state;
  const enter = () => document.querySelector("#place button:not([disabled])")?.focus();
  return section("scores", "Where it comes from", html`
    ${score.grids.length > 1 ? html`<div class="bar">${select("heads of", state.table, score.grids.map((g, i) => [String(i), g.title]), (n) => act.set({ table: Number(n) }))}</div>` : nothing}
    ${grid.ends.length ? html`<div class="bar"><label><input type="checkbox" .checked=${state.one} @change=${(event) => act.set({ one: event.target.checked })}> all rows on one scale</label></div>` : nothing}
    ${mapOf(grid, cell, { label: score.title, choose: act.choose, enter, one: state.one, id: "map" })}
    ${strip(grid, cell, act)}
    <div class="beside">
      ${place(state, act, grid, cell)}
      ${topList(grid, cell, act)}
    </div>
    ${ledger(state, act)}
  `);
}

function strip(grid, { row, column }, act) {
  const end = endOf(grid, row);
  const line = grid.values[row];
  const at = (event) => event.target.closest("[data-i]")?.dataset.i;
  const key = (event) => {
    const to = { ArrowLeft: column - 1, ArrowRight: column + 1, Home: 0, End: line.length - 1 }[event.key];
    if (to === undefined || to < 0 || to >= line.length) return;
    event.preventDefault();
    act.choose({ row, column: to });
  };
  return html`
    <h3>${grid.title} ${grid.rows[row]}, full colour at ${number(end)}</h3>
    <div class="strip" dir="ltr" tabindex="0" role="group" aria-label=${`the text by its scores in ${grid.rows[row]}; arrow keys move`} @keydown=${key}
      @click=${(event) => at(event) !== undefined && act.choose({ row, column: Number(at(event)) })}>${grid.columns.map((token, i) => {
        const quiet = Math.abs(line[i] ?? 0) < 0.05 * end && i !== column;
        return html`<bdi data-i=${i} class=${i === column ? "here" : ""} .style=${quiet ? "" : painted(line[i], end)}
          title=${`${grid.positions[i]}: ${number(line[i])}`}>${visible(token, 40).replace(/^·+$/, " ")}</bdi>${token.includes("\n") ? html`<br>` : nothing}`;
      })}</div>`;
}

function place(state, act, grid, { row, column }) {
  const line = grid.values[row];
  const rank = largest(line, line.length).indexOf(column);
  const cells = state.level === "token";
  const why = cells ? nothing : "choose “by token” to cut a place";
  return html`
    <div id="place" class="panel">
      <h3>This place</h3>
      <p><b><bdi>${named(grid.columns[column])}</bdi></b>${grid.positions.length ? ` at ${grid.positions[column]}` : ""} in ${grid.title} ${grid.rows[row]}:
        <b>${number(line[column])}</b>${rank < 0 ? "" : `, rank ${rank + 1} of ${line.length}`}, ${percent(Math.abs(line[column] ?? 0) / total(line))} of the row</p>
      <p>Cut it for real: replace what the model computed here, and run on.</p>
      <div class="bar">
        ${button("Patch", () => act.cut("patch"), { off: !cells || !state.clean, title: state.clean ? "from the second prompt" : "needs a second prompt, below" })}
        ${button("Mean", () => act.cut("mean"), { off: !cells, title: "the mean over the other positions" })}
        ${button("Zero", () => act.cut("zero"), { off: !cells, title: "far from the linear range" })}
      </div>
      <p class="quiet">${why}${state.clean ? nothing : "Patch needs a second prompt (below). "}Zero is far from the linear range.</p>
      ${answer(state)}
    </div>`;
}

/** The two numbers of the latest cut, side by side. */
function answer(state) {
  const found = state.results.at(-1);
  if (!found) return nothing;
  return html`<dl class="answer">
    <div><dt>predicted</dt><dd id="predicted">${signed(found.predicted)}</dd></div>
    <div><dt>measured</dt><dd id="measured">${signed(found.measured)}</dd></div>
    <div><dt>ratio</dt><dd>${found.predicted ? number(found.measured / found.predicted) : "–"}</dd></div>
  </dl>
  ${!found.predicted && !found.measured && state.cuts.at(-1).by === "patch" ? html`<p class="quiet">nothing to patch: both prompts have the same activation here</p>` : nothing}
  ${found.before === null ? nothing : html`<p class="quiet">what the scope measures: ${number(found.before)} → ${number(found.after)}</p>`}`;
}

function placeText(fields, found) {
  const where = Object.entries(found.where).filter(([dim]) => dim !== "pos").map(([dim, label]) => (dim === "site" ? label : `${dim} ${label}`)).join(" ");
  return html`${found.token === null ? "all positions" : html`<bdi>${named(found.token)}</bdi> at ${fields.pos}`} in ${where}`;
}

function ledger(state, act) {
  if (!state.results.length) return nothing;
  const pairs = state.results.map(({ predicted, measured }) => [predicted, measured]);
  return html`
    <h3>Ledger of cuts</h3>
    <div class="beside">
      <div class="scroll"><table>
        <thead><tr><th>place</th><th>by</th><th>predicted</th><th>measured</th><th>ratio</th><th></th></tr></thead>
        <tbody>${state.results.map((found, n) => html`<tr>
          <th scope="row">${placeText(state.cuts[n], found)}</th><td>${state.cuts[n].by}</td><td>${signed(found.predicted)}</td><td>${signed(found.measured)}</td>
          <td>${found.predicted ? number(found.measured / found.predicted) : "–"}</td><td>${button("Undo", () => act.undo(n), { title: "take it off the list: the model was never changed" })}</td></tr>`)}
        </tbody></table></div>
      ${scatter(pairs)}
    </div>`;
}

function topList(grid, { row, column }, act) {
  const line = grid.values[row];
  const sums = grid.values.map(total);
  const top = largest(line, 20);
  const held = top.reduce((sum, i) => sum + Math.abs(line[i]), 0) / sums[row];
  const around = (from, to) => grid.columns.slice(Math.max(0, from), Math.max(0, to)).map((t) => visible(t, 12)).join("");
  return html`
    <div class="panel scroll"><h3>Largest in this row</h3>
    <table><caption>${top.length} of ${line.length} tokens hold ${percent(held)} of the row's sum of magnitudes</caption>
      <thead><tr><th>token</th><th>${grid.positions.length ? "position" : ""}</th><th>score</th><th>of the row</th>${grid.rows.length > 1 ? html`<th>most in</th><th>by row</th>` : nothing}</tr></thead>
      <tbody>${top.map((i) => {
        const shares = grid.values.map((l, r) => (sums[r] ? Math.abs(l[i] ?? 0) / sums[r] : 0));
        const most = Math.max(...shares);
        return html`<tr class=${i === column ? "here" : ""}>
          <th scope="row"><button type="button" class="plain" aria-pressed=${String(i === column)} @click=${() => act.choose({ row, column: i })}><span class="quiet">${around(i - 3, i)}</span><bdi .style=${painted(line[i], endOf(grid, row))}>${named(grid.columns[i])}</bdi><span class="quiet">${around(i + 1, i + 4)}</span></button></th>
          <td>${grid.positions[i] ?? ""}</td><td>${number(line[i])}</td><td>${percent(Math.abs(line[i]) / sums[row])}</td>
          ${grid.rows.length > 1 ? html`<td>${grid.rows[shares.indexOf(most)]}</td><td class="steps" aria-hidden="true">${shares.map((s) => BLOCKS[Math.min(7, Math.floor((8 * s) / (most || 1)))]).join("")}</td>` : nothing}</tr>`;
      })}</tbody></table></div>`;
}

function heads(state, act) {
  const { flow, edges, flowCell: cell } = state;
  if (!flow) return section("heads", "Heads and MLPs", html`<div class="bar">${button("Follow the influence", act.flow)}<span class="quiet">through every head and MLP: one forward, one backward, one forward-mode pass</span></div>`);
  const [grid] = flow.grids;
  const mlp = cell.column >= state.model.heads;
  const value = grid.values[cell.row][cell.column];
  return section("heads", "Heads and MLPs", html`
    <p class="quiet">total ${number(flow.total)}; conserved to ${flow.residual.toExponential(1)}; ${grid.title}</p>
    ${mapOf(grid, cell, { label: grid.title, choose: (flowCell) => act.set({ flowCell }), enter: () => !mlp && act.edges(), id: "flow" })}
    <p><b>${mlp ? "MLP" : `head ${cell.column}`} of layer ${cell.row}</b>: ${percent(value)} of the total</p>
    <div class="bar">
      ${button("What it reads", act.edges, { off: mlp })}
      ${button("Patch", () => act.cutHead("patch"), { off: mlp || !state.clean, title: "all positions, from the second prompt" })}
      ${button("Mean", () => act.cutHead("mean"), { off: mlp, title: "all positions" })}
      ${button("Zero", () => act.cutHead("zero"), { off: mlp, title: "all positions; far from the linear range" })}
    </div>
    ${edges ? html`<div class="beside"><div class="panel scroll"><h3>Strongest edges of ${edges.head.join(".")}</h3>
      <table><thead><tr><th>from</th><th>to</th><th>through</th><th>influence</th><th>of the total</th></tr></thead>
      <tbody>${edges.edges.map((e) => html`<tr><th scope="row"><bdi>${named(edges.tokens[e.key])}</bdi> ${e.key}</th><td><bdi>${named(edges.tokens[e.query])}</bdi> ${e.query}</td>
        <td>${e.kind === "value" ? "what is read" : "where it looks"}</td><td>${signed(e.value)}</td><td>${percent(e.share)}</td></tr>`)}</tbody></table></div>
      ${edges.figure ? html`<iframe sandbox="allow-scripts" src=${`/figure/${edges.figure}`} title=${`edges of head ${edges.head.join(".")}, drawn by circuitsvis`}></iframe>` : nothing}</div>` : nothing}
  `);
}

function pair(state, act) {
  const { pair: found } = state;
  const changed = (state.aligned ?? []).map(([one, other], i) => ({ one, other, i })).filter(({ one, other }) => one !== other);
  const cell = state.pairCell ?? { row: 0, column: 0 };
  const shown = found?.grids.slice(0, found.heads ? 2 * found.sites.length : 2) ?? [];
  return section("pair", "Two prompts", html`
    <label for="clean">Second prompt: activations are taken from here and patched into the first</label>
    <textarea id="clean" rows="2" maxlength="20000" spellcheck="false" .value=${state.clean}
      @change=${(event) => { Object.assign(state, { aligned: undefined }); act.set({ clean: event.target.value, pair: null }); if (event.target.value) act.align(); }}></textarea>
    ${state.aligned ? html`<p>${changed.length ? "They differ in " : "They are the same text."}${changed.slice(0, 12).map(({ one, other, i }, n) => html`${n ? ", " : ""}<bdi>${named(one)}</bdi> for <bdi>${named(other)}</bdi> at ${i}`)}${changed.length > 12 ? ` and ${changed.length - 12} more` : ""}</p>` : nothing}
    <div class="bar">
      ${button("Predict every patch", act.predict, { off: !state.clean })}
      ${button("Measure the largest", act.measure, { off: !state.clean })}
      ${field("how many", state.largest, 1, state.model.most_places, 1, (n) => act.set({ largest: n }))}
    </div>
    ${found ? html`
      <p>${found.metric ? `what the scope measures: second prompt ${number(found.metric.clean)}, first ${number(found.metric.corrupted)}` : ""}${found.spearman === null || found.spearman === undefined ? "" : `; Spearman of ${found.pairs.length} places ${number(found.spearman)}, sign right in ${percent(found.sign_agreement)}`}</p>
      ${shown.map((grid, n) => html`<h3>${grid.title || "predicted"}</h3>${mapOf(grid, cell, { label: grid.title || "predicted effects", choose: (pairCell) => act.set({ pairCell }), enter: () => null, id: `pair${n}` })}`)}
      ${found.pairs ? scatter(found.pairs) : nothing}
    ` : nothing}
  `);
}

function exports(state, act) {
  return section("export", "Take it with you", html`
    <div class="bar">
      ${button("SVG", act.svg)} ${button("PNG", act.png)} ${button("CSV", () => act.file("csv"))}
      ${button("Python", () => act.file("python"), { title: "asks everything on this page again" })}
      ${button("Report", () => act.file("report"), { title: "one HTML file that needs no server" })} ${button("Copy link", act.link)}
    </div>`);
}

const keys = () => html`<details id="keys"><summary>Keys</summary><dl>${KEYS.map(([key, what]) => html`<div><dt>${key}</dt><dd>${what}</dd></div>`)}</dl></details>`;
