// A Flow: click a token, and see where its influence sits at each depth and which heads and MLPs it passes; click a head,
// and see between which tokens it carries.
function exploreFlow(data, root) {
  const BLOCK = 50, SINK = 3, ROUNDING = 1e-5; // as in the static views
  for (const part of ["total", "heads", "mlps", "skip", "stream", "last", "stderr", "composition"])
    if (data[part]) data[part] = unpacked(data[part]);
  for (const head of data.edges) head.values = unpacked(head.values);
  const [layers, depths, many] = [data.layers.length, data.depths.length, data.branches.length - 1];
  // The numbers of one source as lines: of its heads and MLP in each layer, of its positions at each depth.
  const branchesOf = (i) => data.layers.map((_, layer) => {
    const start = (i * layers + layer) * many;
    return [...data.heads.subarray(start, start + many), data.mlps[i * layers + layer]];
  });
  const streamOf = (i, end) => data.depths.map((_, depth) => {
    const start = (i * depths + depth) * data.tokens.length;
    return [...data.stream.subarray(start, start + end)];
  });

  // The ends of the colour scales: one for all, or of each row its own, which position 0 and the last one do not set
  // where they exceed the others by far.
  const largestOf = (rows) => Math.max(0, ...rows.flat().map(Math.abs));
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

  // The tokens: a button for each source that has a row.
  const strip = add(root, "div", undefined, "lens-tokens");
  const row = new Map(data.sources.map((position, i) => [position, i]));
  const ends = data.sources.map((position, i) => (position === 0 ? 0 : Math.abs(data.total[i])));
  const end = Math.max(...ends) || Math.max(...data.total.map(Math.abs));
  const tokens = data.tokens.map((token, position) => {
    const button = add(strip, "button", token);
    button.type = "button";
    const i = row.get(position);
    if (i === undefined) button.disabled = true;
    else {
      paint(button, data.total[i], end);
      button.title = "position " + position + ": " + totalOf(i);
      button.addEventListener("click", () => choose({ source: position }));
    }
    return button;
  });
  strip.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    const at = data.sources.indexOf(chosen.source) + step;
    if (at < 0 || at >= data.sources.length) return;
    event.preventDefault();
    choose({ source: data.sources[at] }, event.repeat);
    tokens[chosen.source].focus();
  });
  function totalOf(i) {
    return number(data.total[i]) + (data.stderr ? " ± " + number(data.stderr[i], 2) : "");
  }

  // Two tables, made once and painted on each click.
  const said = add(root, "p", "", "lens-said");
  said.setAttribute("aria-live", "polite");
  const maps = add(root, "div", undefined, "lens-maps");
  const table = (title, columns, rows, upright, click) => {
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
        names.forEach((_, j) => {
          const cell = add(line, "td");
          cells[i].push(cell);
          if (!click || !click(i, start + j)) return;
          cell.tabIndex = 0;
          cell.setAttribute("role", "button");
          cell.addEventListener("click", click(i, start + j));
          cell.addEventListener("keydown", (event) => {
            if (event.key !== "Enter" && event.key !== " ") return;
            event.preventDefault();
            click(i, start + j)();
          });
        });
      });
      blocks.push([made, start]);
    }
    const legend = add(box, "div", "", "note");
    const each = upright && columns.length > BLOCK;
    const paintAll = (values, whole, past) => {
      const ends = scales(values, each), largest = Math.max(...ends);
      const names = rows.map((name, i) => name + (past ? " (past its heads " + percent(whole ? past[i] / whole : null) + ")" : "")
        + (each ? " [" + percent(whole ? Math.abs(ends[i] / whole) : null) + "]" : ""));
      rows.forEach((_, i) => labels[i].forEach((label) => (label.textContent = names[i])));
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
      return { title, names, columns, values, ends, legend: legend.textContent, cells };
    };
    return paintAll;
  };
  // What is chosen: a source, and where somebody asked for it a head.
  const chosen = { source: data.sources[0], head: null };
  const heads = table("through which heads and MLPs: % of the token's score", data.branches, data.layers, false,
    (layer, branch) => (branch < many ? () => choose({ head: layer + "." + branch }) : null));
  const stream = table("where it sits at each depth", data.tokens.slice(0, data.end), data.depths, true);
  const one = add(root, "div");
  one.setAttribute("aria-live", "polite");

  const aboutSource = (i) => "position " + chosen.source + ", “" + data.tokens[chosen.source] + "”: " + totalOf(i) + " (" + data.units
    + "), " + percent(data.whole ? data.total[i] / data.whole : null) + " of the total";
  let drawn; // what is seen: both tables, and the lines about a head
  function draw() {
    const i = row.get(chosen.source), whole = data.total[i];
    tokens.forEach((button, at) => button.setAttribute("aria-pressed", at === chosen.source));
    const branches = branchesOf(i);
    drawn = [heads(branches, whole, data.skip.subarray(i * layers, (i + 1) * layers)), stream(streamOf(i, data.end), whole)];
    drawn[0].cells.forEach((line, layer) => line.forEach((cell, branch) =>
      cell.classList.toggle("chosen", layer + "." + branch === chosen.head)));
    const strongest = branches
      .flatMap((line, layer) => line.map((value, branch) => [value, layer + "." + data.branches[branch]]))
      .sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 3)
      .map(([value, name]) => name + " " + percent(whole ? value / whole : null));
    said.replaceChildren();
    // The token is isolated: a right-to-left one would reorder what follows.
    const [before, after] = aboutSource(i).split("“" + data.tokens[chosen.source] + "”");
    said.append(before + "“");
    add(said, "bdi", data.tokens[chosen.source]);
    said.append("”" + after + "; most goes through " + strongest.join(", "));
    drawn.push(drawHead(i));
  }

  // One head: what the source moved in it, and the token pairs that it carries most between; the same as lines of words.
  function drawHead(i) {
    one.replaceChildren();
    if (chosen.head === null) return [];
    const [layer, head] = chosen.head.split(".").map(Number);
    const at = (i * layers + layer) * many + head;
    const asShare = (value) => percent(data.total[i] ? value / data.total[i] : null);
    const parts = data.composition && ["queries", "keys", "values"].map((name, k) => asShare(data.composition[3 * at + k]) + " by its " + name);
    const words = "head " + chosen.head + ": " + asShare(data.heads[at]) + " of this token's score" + (parts ? ", " + parts.join(", ") : "");
    add(one, "div", words, "lens-heading");
    const edges = data.edges.find((each) => each.layer === layer && each.head === head);
    if (!edges) {
      add(one, "div", "for the tokens that it reads from and writes to run flow(..., edges=True)", "note");
      return [" ", words];
    }
    const list = add(add(one, "div", undefined, "lens-scroll"), "table", undefined, "lens-list");
    const line = add(list.createTHead(), "tr");
    for (const name of ["reads from", "writes to", "edge", "influence"]) add(line, "th", name);
    const body = list.createTBody(), largest = Math.max(0, ...edges.values.map(Math.abs));
    edges.places.forEach(([kind, key, query], n) => {
      const made = add(body, "tr");
      for (const position of [key, query]) {
        const word = add(made, "td", undefined, "word");
        add(word, "bdi", data.tokens[position]);
        word.append(" (" + position + ")");
      }
      add(made, "td", kind);
      paint(add(made, "td", number(edges.values[n])), edges.values[n], largest);
    });
    const note = "the " + edges.places.length + " strongest edges of " + edges.count + ", summed over all sources: through what is read"
      + " (value) and where the head looks (pattern), " + data.units;
    add(one, "div", note + "; full colour at ±" + number(largest), "note");
    const named = (position) => data.tokens[position] + " (" + position + ")";
    return [" ", words, note, ...edges.places.map(([kind, key, query], n) =>
      named(key) + " → " + named(query) + ", " + kind + ": " + number(edges.values[n]))];
  }

  const fieldsNow = () => ({ source: String(chosen.source), ...(chosen.head === null ? {} : { head: chosen.head }) });
  function choose(changed, replace) {
    if (changed.head !== undefined && changed.head === chosen.head) changed.head = null; // a second click takes it back
    Object.assign(chosen, changed);
    keepChosen(data.id, fieldsNow(), replace);
    draw();
  }

  // Everything of the source that is chosen, as `flow.sel(source=...).to_dataframe()` has it, after what was asked.
  function csvRows() {
    const i = row.get(chosen.source), source = [chosen.source, data.texts[chosen.source]], found = [];
    const asked = [data.question, data.model, data.units, data.target];
    const put = (kind, layer, head, depth, pos, value) =>
      found.push([...asked, kind, ...source, layer, head, value, depth, pos, pos === null ? null : data.texts[pos]]);
    for (const [kind, part] of [["head", data.heads], ["last", data.last]])
      if (part) for (let layer = 0; layer < layers; layer++)
        for (let head = 0; head < many; head++) put(kind, layer, head, null, null, part[(i * layers + layer) * many + head]);
    for (const [kind, part] of [["mlp", data.mlps], ["skip", data.skip]])
      for (let layer = 0; layer < layers; layer++) put(kind, layer, null, null, null, part[i * layers + layer]);
    streamOf(i, data.tokens.length).forEach((line, depth) => line.forEach((value, pos) => put("stream", null, null, depth, pos, value)));
    return found;
  }

  function picture() {
    const wide = Math.min(28, Math.max(4, 1200 / data.end)), high = 18;
    const left = 220;
    const made = new Picture(Math.max(700, left + 24 + wide * data.end, left + 24 + 34 * data.branches.length));
    made.write(data.title, 15, "bold");
    made.write("explained: " + data.said);
    made.write(aboutSource(row.get(chosen.source)));
    for (const { title, names, columns, values, ends, legend, cells } of drawn.slice(0, 2)) {
      const width = columns === data.branches ? 34 : wide;
      made.y += 14;
      made.write(title, 12, "bold");
      made.y += 4;
      values.forEach((line, i) => {
        made.put("text", { x: left - 6, y: made.y + 13, "font-size": 11, "text-anchor": "end", fill: "#111" }, names[i]);
        line.forEach((value, j) => {
          made.box(left + j * width, made.y, width - (width > 6 ? 1 : 0), high - 1, value, ends[i], cells[i][j].title);
          const words = { x: left + (j + 0.5) * width, y: made.y + 12, "font-size": 9, "text-anchor": "middle", fill: colour(value, ends[i])[1] };
          if (cells[i][j].textContent) made.put("text", words, cells[i][j].textContent);
        });
        made.y += high;
      });
      const every = Math.ceil(12 / width);
      columns.forEach((name, j) => {
        if (j % every) return;
        const turn = "translate(" + (left + j * width + width / 2 - 3) + "," + (made.y + 8) + ") rotate(60)";
        made.put("text", { transform: turn, "font-size": 11, fill: "#111" }, name);
      });
      made.y += 14 + Math.max(...columns.map((name) => made.measure(name, 11)));
      made.write(legend, 11);
    }
    for (const line of drawn[2]) made.write(line, 11);
    return made.text();
  }

  buttons(root, () => ({
    words: ["flow", data.question, "from-" + chosen.source],
    header: ["question", "model", "units", "target", "kind", "source", "source_token", "layer", "head", "influence", "depth", "pos", "pos_token"],
    rows: csvRows,
    picture,
  }));

  // At first the strongest token but for the attention sink and the one at the prediction, which mostly stays where it is.
  const telling = ends.map((value, i) => (data.sources[i] === data.end - 1 ? 0 : value));
  const strongest = data.sources[telling.indexOf(Math.max(...telling))];
  const restore = (fields) => {
    const [layer, head] = (fields.head ?? "").split(".").map(Number);
    chosen.source = row.has(Number(fields.source)) && fields.source !== "" ? Number(fields.source) : strongest;
    chosen.head = layer < layers && head < many && layer + "." + head === fields.head ? fields.head : null;
    draw();
    if (fields.source !== undefined && String(chosen.source) !== fields.source) said.append("; the address asks for a token that has no row here");
    if (fields.head !== undefined && chosen.head === null) said.append("; the address asks for a head that is not here");
  };
  whenAddressed(data.id, restore);
  restore(chosenIn(data.id));
}
