"use strict";
// Scores: choose what is explained, and see what it depends on. Every number is the package's; nothing is added up here.
function exploreScores(data, root) {
  const LISTED = 10, DIGITS = 4;
  const WORDS = { target_pos: "explained", site: "site", head: "head", token: "each token" };
  const choices = add(root, "div", undefined, "lens-choices");
  const said = add(root, "p", "", "lens-said");
  said.setAttribute("aria-live", "polite");
  const text = add(root, "div", undefined, "lens-tokens");
  const scale = add(root, "div", undefined, "lens-scale");
  const notes = add(root, "div", undefined, "note");
  const map = add(root, "div", undefined, "lens-overview");
  const list = add(add(root, "div", undefined, "lens-scroll"), "table", undefined, "lens-list");
  for (const result of data.results)
    for (const level of Object.values(result.levels)) {
      level.values = unpacked(level.values);
      if (level.stderr) level.stderr = unpacked(level.stderr);
    }

  // What is chosen, as fields of the address; `now` is what they come to: a row of numbers, and what it is about.
  let now;
  const axisOf = (result, name) => result.axes.findIndex((axis) => axis.name === name);
  function comeTo(fields) {
    const missing = [];
    const pick = (labels, name, other) => {
      const at = labels.map(String).indexOf(fields[name]);
      if (at < 0 && fields[name] !== undefined) missing.push(name + " " + fields[name]);
      return at < 0 ? other : at;
    };
    const scope = pick([...data.results.keys()].map((n) => n + 1), "scope", 0);
    const result = data.results[scope];
    const by = Object.keys(result.levels)[pick(Object.keys(result.levels), "level", 0)];
    const at = result.axes.map(({ name, labels }) =>
      pick(labels, name, name === "site" ? Math.max(0, labels.indexOf("hook_embed")) : 0));
    const level = result.levels[by];
    const row = at.reduce((whole, i, axis) => whole * result.axes[axis].labels.length + i, 0);
    const width = level.positions.length;
    const line = (numbers) => numbers.subarray(row * width, (row + 1) * width);
    const target = result.targets[axisOf(result, "target_pos") < 0 ? 0 : at[axisOf(result, "target_pos")]];
    now = { scope, result, by, level, at, row, target, values: line(level.values), end: level.ends[row],
      errors: level.stderr && line(level.stderr), left: level.left[row] ? 0 : -1, tokens: data.texts[result.text] };
    return missing;
  }

  const fieldsNow = () => ({
    ...(data.results.length > 1 ? { scope: String(now.scope + 1) } : {}),
    ...(Object.keys(now.result.levels).length > 1 ? { level: now.by } : {}),
    ...Object.fromEntries(now.result.axes.map(({ name, labels }, i) => [name, String(labels[now.at[i]])])),
  });

  function choose(changed, replace) {
    comeTo({ ...fieldsNow(), ...changed });
    keepChosen(data.id, fieldsNow(), replace);
    draw([]);
  }

  // A list to choose from, where there is a choice.
  function offer(name, values, names, current) {
    if (values.length < 2) return;
    const label = add(choices, "label", WORDS[name] ?? name);
    const made = add(label, "select");
    made.name = name;
    values.forEach((value, i) => (add(made, "option", names[i]).value = value));
    made.value = current;
    made.addEventListener("change", () => choose({ [name]: made.value }));
  }

  function drawChoices() {
    const focused = choices.contains(document.activeElement) ? document.activeElement.name : null;
    choices.replaceChildren();
    const chosen = fieldsNow(), { result } = now, levels = Object.keys(result.levels);
    offer("scope", data.results.map((_, i) => String(i + 1)), data.results.map((one) => one.name), chosen.scope);
    for (const { name, labels, shown } of result.axes) {
      const names = name === "target_pos" ? result.targets.map((target) => target.said) : shown;
      offer(name, labels.map(String), names, chosen[name]);
    }
    offer("level", levels, levels.map((by) => WORDS[by] ?? by), chosen.level);
    if (focused) choices.querySelector('select[name="' + focused + '"]')?.focus();
  }

  const scoreOf = (i, row = now.row) => {
    const { level } = now, at = row * level.positions.length + i;
    return number(level.values[at], DIGITS) + (level.stderr ? " ± " + number(level.stderr[at], 2) : "");
  };
  const placeOf = (i) => {
    const { names, positions, members } = now.level;
    const many = members && members[i].length > 1 ? members[i].length + " tokens from " : "";
    return names[i] + (many ? ", " : " at ") + many + positions[i];
  };

  // By position the column that it is part of; of tokens in no span none.
  function columns() {
    const { positions, members } = now.level;
    const found = new Map();
    positions.forEach((position, i) => (members ? members[i] : [position]).forEach((one) => found.set(one, i)));
    return found;
  }

  // The text from left to right: runs of neighbours in one column, and a rule before the completion.
  function runs() {
    const column = columns(), made = [];
    now.tokens.shown.forEach((_, position) => {
      const i = column.get(position), last = made.at(-1);
      if (last && last.column === i && i !== undefined && position !== now.tokens.completion) last.positions.push(position);
      else made.push({ column: i, positions: [position] });
    });
    return made;
  }

  const isLater = (i) => now.target.last !== null && now.level.positions[i] > now.target.last && now.values[i] === 0;
  const isPlain = (i) => i === undefined || i === now.left || Math.abs(now.values[i]) < QUIET * now.end;

  function drawText() {
    const focused = text.contains(document.activeElement);
    text.replaceChildren();
    const targets = new Map(now.result.targets.map((target, n) => [target.at, n]));
    let pressed = null, parent = text;
    for (const { column, positions } of runs()) {
      if (positions[0] === now.tokens.completion) {
        if (positions[0]) add(text, "div", "completion", "lens-rule");
        parent = add(text, "div");
      }
      const run = add(parent, "bdi");
      if (column === undefined) run.title = "in no span";
      else {
        run.title = column === now.left ? now.level.left[now.row] : placeOf(column) + ": " + scoreOf(column);
        if (isLater(column)) run.className = "later";
        else if (!isPlain(column)) paint(run, now.values[column], now.end);
      }
      for (const position of positions) {
        const n = targets.get(position), shown = now.tokens.shown[position];
        if (n !== undefined && now.result.targets.length > 1) {
          const made = add(run, "button", shown);
          made.type = "button";
          const axis = now.result.axes[axisOf(now.result, "target_pos")];
          const is = now.target.at === position;
          made.setAttribute("aria-pressed", is);
          made.tabIndex = is ? 0 : -1;
          if (is) pressed = made;
          made.addEventListener("click", () => choose({ target_pos: String(axis.labels[n]) }));
        } else add(run, "bdi", shown, now.target.at === position ? "explained" : "");
        // After the last token of a run outside of it, or its colour would begin the next line.
        for (const _ of now.tokens.texts[position].matchAll(/\n/g)) add(position === positions.at(-1) ? parent : run, "br");
      }
    }
    text.tabIndex = pressed ? -1 : 0;
    if (focused) (pressed ?? text).focus();
  }

  // The axis that keys walk along: the targets, else the sites, else the heads.
  const axisAmong = (names) => now.result.axes.findIndex(({ name, labels }) => names.includes(name) && labels.length > 1);

  // All rows along that axis at a glance, a pixel a number and each on its scale; a click chooses one.
  function drawMap() {
    map.replaceChildren();
    const axis = [["target_pos"], ["site"], ["head"]].map(axisAmong).find((found) => found >= 0);
    if (axis === undefined) return;
    const { name, labels, shown } = now.result.axes[axis], { level } = now, width = level.positions.length;
    const after = now.result.axes.slice(axis + 1).reduce((product, one) => product * one.labels.length, 1);
    const rowOf = (k) => now.row + (k - now.at[axis]) * after;
    const titles = name === "target_pos" ? now.result.targets.map(({ said }) => said) : shown;
    const scales = new Set(labels.map((_, k) => level.ends[rowOf(k)])).size > 1 ? "each on its own scale" + shared : "on one scale" + shared;
    add(map, "div", "all " + labels.length + " " + (name === "target_pos" ? "explained" : name + "s") + " from top to bottom, " + scales + "; click one", "note");
    const box = add(map, "div"), canvas = add(box, "canvas");
    [canvas.width, canvas.height] = [width, labels.length];
    canvas.style.height = labels.length * Math.min(14, Math.max(4, 240 / labels.length)) + "px";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "a map of all rows; the lists and the text say its numbers");
    const pen = canvas.getContext("2d");
    labels.forEach((_, k) => {
      for (let i = 0; i < width; i++) {
        pen.fillStyle = i === (level.left.length ? 0 : -1) ? "#fff" : colour(level.values[rowOf(k) * width + i], level.ends[rowOf(k)])[0];
        pen.fillRect(i, k, 1, 1);
      }
    });
    const mark = add(box, "div", undefined, "lens-mark");
    mark.style.top = (100 * now.at[axis]) / labels.length + "%";
    mark.style.height = 100 / labels.length + "%";
    const completion = level.positions.findIndex((position) => now.tokens.completion && position >= now.tokens.completion);
    if (completion > 0) add(box, "div", undefined, "lens-edge").style.left = (100 * completion) / width + "%";
    const place = (event) => {
      const { left, top, width: wide, height } = box.getBoundingClientRect();
      const part = (at, size, count) => Math.min(count - 1, Math.max(0, Math.floor((at / size) * count)));
      return [part(event.clientY - top, height, labels.length), part(event.clientX - left, wide, width)];
    };
    box.addEventListener("click", (event) => choose({ [name]: String(labels[place(event)[0]]) }));
    box.addEventListener("mousemove", (event) => {
      const [k, i] = place(event);
      box.title = titles[k] + ", " + placeOf(i) + ": " + (i === 0 && level.left.length ? level.left[rowOf(k)] : scoreOf(i, rowOf(k)))
        + ", full colour at " + number(level.ends[rowOf(k)]);
    });
  }

  text.addEventListener("keydown", (event) => {
    const across = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    const down = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const step = across ?? down;
    if (step === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    const axis = axisAmong(across === undefined ? ["site", "head"] : ["target_pos"]);
    if (axis < 0) return;
    event.preventDefault();
    const { name, labels } = now.result.axes[axis];
    const to = Math.min(labels.length - 1, Math.max(0, now.at[axis] + step));
    if (to !== now.at[axis]) choose({ [name]: String(labels[to]) }, event.repeat);
  });

  // Results of the same units have the same scales, row by row, so that their colours can be compared.
  const shared = data.results.length > 1 ? ", shared by results of these units" : "";
  const where = () => now.result.axes.flatMap(({ name, shown }, i) => (name === "target_pos" ? [] : [shown[now.at[i]]])).join(", ");
  const about = () => [now.target.said, where() && "at " + where(), now.by === "token" ? "" : "by " + now.by].filter(Boolean).join("; ");
  const units = () => now.result.units + (now.level.known?.[now.row] ? ", an estimate, " + now.level.known[now.row] : "");
  const scaleText = () => "(" + units() + ")" + (now.level.ends.length < 2 ? "" : new Set(now.level.ends).size > 1
    ? "; each row has a scale" : "; one scale for all rows") + shared;
  function remarks() {
    const off = [...now.values.keys()].filter((i) => i !== now.left && Math.abs(now.values[i]) > now.end);
    return [
      off.length ? "off this scale: " + off.map((i) => placeOf(i) + ": " + scoreOf(i)).join(", ") : "",
      now.level.left[now.row] ?? "",
      "plain text: below " + percent(QUIET) + " of the scale",
      now.level.note,
    ].filter(Boolean).join("; ");
  }

  const largest = () => [...now.values.keys()].filter((i) => i !== now.left && now.values[i] !== 0 && !Number.isNaN(now.values[i]))
    .sort((a, b) => Math.abs(now.values[b]) - Math.abs(now.values[a])).slice(0, LISTED);

  function draw(missing) {
    drawChoices();
    said.replaceChildren();
    prose(add(said, "strong"), now.result.title);
    prose(said, ", " + about());
    drawText();
    scale.replaceChildren();
    legend(scale, now.end, now.result.signed, scaleText());
    notes.replaceChildren();
    prose(notes, [...missing.map((one) => "the address asks for " + one + ", which is not here"), remarks()].join("; "));
    drawMap();
    list.replaceChildren();
    const top = largest(), { lengths, names, positions } = now.level;
    const head = add(list.createTHead(), "tr");
    for (const name of ["the " + top.length + " largest", "position", ...(lengths.length ? ["tokens"] : []), "score", ...(now.errors ? ["±"] : [])])
      add(head, "th", name);
    head.firstChild.className = "word";
    const body = list.createTBody();
    for (const i of top) {
      const line = add(body, "tr");
      const word = add(line, "td", undefined, "word");
      paint(add(word, "bdi", names[i]), now.values[i], now.end);
      add(line, "td", String(positions[i]));
      if (lengths.length) add(line, "td", String(lengths[i]));
      add(line, "td", number(now.values[i], DIGITS));
      if (now.errors) add(line, "td", number(now.errors[i], 2));
    }
  }

  // A row for each source, as `to_dataframe()` has them, after what was asked and chosen.
  function table() {
    const { result, level, target, at } = now, { texts } = now.tokens;
    const asked = { question: result.question, model: result.model, part: result.part, units: result.units, level: now.by };
    result.axes.forEach(({ name, labels }, i) => {
      asked[name] = labels[at[i]];
      if (name === "target_pos") asked.target_pos_token = texts[labels[at[i]]];
    });
    Object.assign(asked, { position: target.position, target: target.text, target_p: target.p, target_rank: target.rank });
    const header = [...Object.keys(asked), "pos", "pos_token", ...(level.lengths.length ? ["length"] : []), "score", ...(now.errors ? ["stderr"] : [])];
    const rows = () => level.positions.map((position, i) => [
      ...Object.values(asked), position, level.texts[i], ...(level.lengths.length ? [level.lengths[i]] : []),
      now.values[i], ...(now.errors ? [now.errors[i]] : []),
    ]);
    return { header, rows };
  }

  function picture() {
    const made = new Picture(1000), size = 13, family = "ui-monospace,monospace", step = 22;
    made.write(now.result.title, 15, "bold");
    made.write(about());
    made.scale(now.end, now.result.signed, scaleText());
    made.write(remarks(), 11);
    let x = 12;
    const newLine = () => ((x = 12), (made.y += step));
    made.y += 26;
    for (const { column, positions } of runs()) {
      if (positions[0] === now.tokens.completion && positions[0]) {
        newLine();
        made.put("path", { d: "M12 " + (made.y - 15) + "H" + (made.width - 12), stroke: "#888" });
        made.put("text", { x: 12, y: made.y - 4, "font-size": 10, fill: "#555" }, "completion");
        made.y += step - 4;
      }
      for (const position of positions) {
        const shown = now.tokens.shown[position], wide = made.measure(shown, size, family) + 4;
        if (x + wide > made.width - 12 && x > 12) newLine();
        const bare = isPlain(column);
        const ink = bare ? (column !== undefined && isLater(column) ? "#888" : "#111") : colour(now.values[column], now.end)[1];
        if (!bare) made.box(x, made.y - 14, wide, 19, now.values[column], now.end, placeOf(column) + ": " + scoreOf(column));
        if (now.target.at === position)
          made.put("rect", { x: x + 1, y: made.y - 14, width: wide - 2, height: 19, fill: "none", stroke: EDGE, "stroke-width": 2 });
        const words = { x: x + 2, y: made.y, "font-size": size, "font-family": family, fill: ink, "xml:space": "preserve", textLength: wide - 4,
          lengthAdjust: "spacingAndGlyphs", style: "white-space:pre" };
        made.put("text", words, shown);
        x += wide;
        for (const _ of now.tokens.texts[position].matchAll(/\n/g)) newLine();
      }
    }
    return made.text();
  }

  buttons(root, () => ({
    words: [now.result.question, ...now.result.axes.map(({ name, labels }, i) => (name === "target_pos" ? "after-" : "") + labels[now.at[i]]), now.by],
    picture,
    ...table(),
  }));
  const restore = (fields) => draw(comeTo(fields));
  whenAddressed(data.id, restore);
  restore(chosenIn(data.id));
}
